"""One class a row: the hard label, in as many bits as the number of classes takes.

Sattler et al. 2020 (https://arxiv.org/abs/2012.00632) quantise soft labels down to 1 bit: the likeliest class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common.codecs._rows import has_distributions, packed_bytes, read_shape, write_shape
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Arrays


@dataclass(frozen=True, slots=True)
class Argmax:
    """Of each distribution its likeliest class, in ⌈log₂(C + 1)⌉ bits; decoded as one-hot; nothing else can be sent."""

    name: ClassVar[str] = "argmax"
    only_distributions: ClassVar[bool] = True
    paper: ClassVar[str] = "Sattler et al. 2020, https://arxiv.org/abs/2012.00632"

    def encode(self, arrays: Arrays) -> Arrays:
        """One vector of bytes for each array of distributions: its shape, then one number a row.

        The number is the class, the first of several that are equally likely, or C where the row has no label.

        Raises:
            KnowledgeError: for an array that is none of distributions over classes.
        """
        return {name: _packed(name, array) for name, array in arrays.items()}

    def decode(self, arrays: Arrays) -> Arrays:
        """One-hot rows, float32; rows without a label are zeros."""
        return {name: _one_hot(name, array) for name, array in arrays.items()}


def _packed(name: str, array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.ndim < 2 or (array.size and not has_distributions(array)):
        raise KnowledgeError(
            f"'{name}' of shape {array.shape}, which codec 'argmax' cannot hold",
            "expected rows that sum to 1",
            "use codec 'raw', 'fp16' or 'int8', or a method that exchanges distributions over classes",
        )
    classes = array.shape[-1]
    labels = np.where(array.any(-1), array.argmax(-1) if classes else 0, classes).ravel()
    bits = (labels[:, None] >> np.arange(_width(classes))) & 1
    head = np.frombuffer(write_shape(array.shape), dtype=np.uint8)
    return np.concatenate([head, np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")])


def _one_hot(name: str, array: NDArray[np.generic]) -> NDArray[np.float32]:
    shape, data = read_shape(name, packed_bytes(name, array))
    classes = shape[-1]
    rows = math.prod(shape[:-1])
    width = _width(classes)
    if len(data) != -(-rows * width // 8):
        raise KnowledgeError(
            f"'{name}' of {len(data)} bytes", f"expected {-(-rows * width // 8)} for shape {shape}", reason=Reason.SHAPE
        )
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=rows * width, bitorder="little")
    labels = bits.reshape(rows, width).astype(np.int64) @ (1 << np.arange(width))
    if labels.max(initial=0) > classes:
        raise KnowledgeError(f"'{name}' with class {labels.max()}", f"expected at most {classes}", reason=Reason.RANGE)
    hot = np.zeros((rows, classes), dtype=np.float32)
    labelled = np.flatnonzero(labels < classes)
    hot[labelled, labels[labelled]] = 1
    return hot.reshape(shape)


def _width(classes: int) -> int:
    """Bits of a number from 0 to C."""
    return max(classes.bit_length(), 1)
