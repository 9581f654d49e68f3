"""Eight bits a probability: each row of soft labels on 256 levels from its least number to its largest.

Affine quantisation (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, equation 1), with a scale and an offset for
each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common.codecs._rows import has_distributions, normalised
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Arrays

LEVELS = 255
"""Steps from a row's least number to its largest."""

_ROWS, _SUMS = ":int8", ":int8-sums"
_ENDS = 4
"""Bytes in front of a row: its least and its largest number in half precision."""


@dataclass(frozen=True, slots=True)
class Int8:
    """Soft labels in 8 bits a number and 32 a row: an error of 1/510 of the row's range; others as they are."""

    name: ClassVar[str] = "int8"
    paper: ClassVar[str] = "Jacob et al. 2018, https://arxiv.org/abs/1712.05877"

    def encode(self, arrays: Arrays) -> Arrays:
        """Arrays (…, C) of two or more axes with all numbers from 0 to 1 become (…, 4 + C) uint8.

        Others stay as they are: a step of a weight is more than a round's change of it, and box geometry has no scale.
        """
        packed: dict[str, NDArray[np.generic]] = {}
        for name, array in arrays.items():
            if array.dtype.kind == "f" and array.ndim >= 2 and array.size and array.min() >= 0 and array.max() <= 1:
                packed[name + (_SUMS if has_distributions(array) else _ROWS)] = _quantised(array)
            else:
                packed[name] = array
        return packed

    def decode(self, arrays: Arrays) -> Arrays:
        """float32 arrays; rows that summed to 1 do so again."""
        unpacked: dict[str, NDArray[np.generic]] = {}
        for key, array in arrays.items():
            if key.endswith(_SUMS):
                unpacked[key.removesuffix(_SUMS)] = normalised(_values(key, array))
            elif key.endswith(_ROWS):
                unpacked[key.removesuffix(_ROWS)] = _values(key, array).astype(np.float32)
            else:
                unpacked[key] = array
        return unpacked


def _quantised(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    values = array.astype(np.float64)
    ends = np.stack([_half(values.min(-1), down=True), _half(values.max(-1), down=False)], axis=-1)
    low, high = (ends[..., i, None].astype(np.float64) for i in range(2))
    width = high - low
    codes = np.rint(np.divide(values - low, width, out=np.zeros_like(values), where=width > 0) * LEVELS)
    return np.concatenate([ends.astype("<f2").view(np.uint8), codes.astype(np.uint8)], axis=-1)


def _half(values: NDArray[np.float64], *, down: bool) -> NDArray[np.float16]:
    """Half precision, rounded away from the row's other numbers: all of them lie between its ends."""
    half = values.astype(np.float16)
    off = half > values if down else half < values
    beyond: NDArray[np.float16] = np.where(off, np.nextafter(half, np.float16(0 if down else 1)), half)
    return beyond


def _values(name: str, array: NDArray[np.generic]) -> NDArray[np.float64]:
    if array.dtype != np.uint8 or array.ndim < 2 or array.shape[-1] <= _ENDS:
        raise KnowledgeError(
            f"'{name}' of shape {array.shape} and type {array.dtype}",
            f"expected bytes of shape (…, {_ENDS} + C)",
            reason=Reason.SHAPE,
        )
    ends = np.ascontiguousarray(array[..., :_ENDS]).view("<f2").astype(np.float64)
    low, high = ends[..., :1], ends[..., 1:]
    if not ((low >= 0) & (low <= high) & (high <= 1)).all():
        raise KnowledgeError(
            f"'{name}' with a row that is not from 0 to 1", "expected 0 <= least <= largest <= 1", reason=Reason.RANGE
        )
    values: NDArray[np.float64] = low + array[..., _ENDS:].astype(np.float64) / LEVELS * (high - low)
    return values
