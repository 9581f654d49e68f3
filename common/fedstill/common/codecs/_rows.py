"""What the codecs of soft labels share: which arrays are distributions, and shapes in front of packed bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason

LARGEST = 2**28
"""Numbers of an unpacked array: a small message must not fill the memory."""

MOST_AXES = 8
"""Axes of an unpacked array."""


def has_distributions(array: NDArray[np.generic]) -> bool:
    """Whether an array's rows along the last axis are numbers >= 0 that sum to 1, or to 0 (no label)."""
    if array.dtype.kind != "f" or not 2 <= array.ndim <= MOST_AXES or not array.size:
        return False
    total = array.sum(-1, dtype=np.float64)
    return bool(array.min() >= 0) and bool(((np.abs(total - 1) < 1e-3) | (total == 0)).all())


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows brought to a sum of 1; a row of zeros stays."""
    total = rows.sum(-1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(rows, total, out=np.zeros_like(rows), where=total > 0).astype(np.float32)
    return scaled


def write_shape(shape: tuple[int, ...]) -> bytes:
    """A shape as bytes: the number of axes (8 bits), then their lengths (32 bits each, little-endian)."""
    return struct.pack(f"<B{len(shape)}I", len(shape), *shape)


def read_shape(name: str, data: bytes) -> tuple[tuple[int, ...], bytes]:
    """The inverse of `write_shape`, and the bytes after it.

    Raises:
        KnowledgeError: if there are no two to eight axes, or the array would have too many numbers.
    """
    axes = data[0] if data else 0
    end = 1 + 4 * axes
    if not 2 <= axes <= MOST_AXES or len(data) < end:
        raise KnowledgeError(
            f"'{name}' of {len(data)} bytes with {axes} axes", f"expected 2 to {MOST_AXES} axes", reason=Reason.SHAPE
        )
    shape = struct.unpack(f"<{axes}I", data[1:end])
    if math.prod(max(length, 1) for length in shape) > LARGEST:
        raise KnowledgeError(
            f"'{name}' of unpacked shape {shape}", f"expected at most {LARGEST} numbers", reason=Reason.TOO_LARGE
        )
    return shape, data[end:]


def packed_bytes(name: str, array: NDArray[np.generic]) -> bytes:
    """The bytes of a packed array.

    Raises:
        KnowledgeError: if it is no vector of bytes.
    """
    if array.ndim != 1 or array.dtype != np.uint8:
        raise KnowledgeError(
            f"'{name}' of shape {array.shape} and type {array.dtype}", "expected a vector of bytes", reason=Reason.TYPE
        )
    return array.tobytes()
