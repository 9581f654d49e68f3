"""Sample ids on the wire, in as few bytes as the other side's knowledge allows."""

from __future__ import annotations

import re
import struct

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason

_SAME = "as-ordered"
_FIRST = re.compile(r"first ([0-9]{1,9})")
_ORDERED = "ordered"
_LISTED = "listed"

_HEAD = struct.Struct("<IIB")
_MOST_LOW_BITS = 62

Ids = NDArray[np.int64]


def write_ids(samples: Ids, known: Ids | None) -> tuple[str, NDArray[np.generic] | None]:
    """How ids travel, and the array that has to travel with it, if any.

    Args:
        samples: ids >= 0.
        known: ids that the other side has; those cost nothing.
    """
    if known is not None and np.array_equal(samples, known):
        return _SAME, None
    if np.array_equal(samples, np.arange(len(samples))):
        return f"first {len(samples)}", None
    if (np.diff(samples) > 0).all():
        return _ORDERED, elias_fano(samples)
    return _LISTED, samples.astype(np.min_scalar_type(int(samples.max(initial=0))))


def read_ids(form: str, array: NDArray[np.generic] | None, known: Ids | None, *, most: int) -> Ids:
    """Ids as `write_ids` wrote them.

    Args:
        form: how they travelled.
        array: what came with it.
        known: ids that both sides have.
        most: so many are counted out, no more.

    Raises:
        KnowledgeError: for anything that `write_ids` does not write, or for too many.
    """
    if form == _SAME and known is not None:
        return known
    if first := _FIRST.fullmatch(form):
        return np.arange(_checked(int(first[1]), most), dtype=np.int64)
    if array is not None and form == _ORDERED and array.dtype == np.uint8:
        return from_elias_fano(array.astype(np.uint8), most=most)
    if array is not None and form == _LISTED and array.dtype.kind == "u":
        return array.astype(np.int64)
    raise KnowledgeError(
        f"sample ids '{form}'", f"expected {_SAME}, first N, {_ORDERED} or {_LISTED}", reason=Reason.SAMPLES
    )


def elias_fano(ids: Ids) -> NDArray[np.uint8]:
    """Strictly increasing ids in about 2 + log₂(largest / count) bits each (Elias 1974, doi:10.1145/321812.321820).

    The low l bits of each id are written as they are, the high ones as the distance from those of the id before, unary.

    Args:
        ids: at least one.
    """
    bits = max(0, int((int(ids[-1]) + 1) // len(ids)).bit_length() - 1)
    high, low = ids >> bits, ids & ((1 << bits) - 1)
    unary = np.zeros(int(high[-1]) + len(ids), dtype=np.uint8)
    unary[high + np.arange(len(ids))] = 1
    rest = (low[:, None] >> np.arange(bits) & 1).astype(np.uint8).ravel()
    head = np.frombuffer(_HEAD.pack(len(ids), len(unary), bits), dtype=np.uint8)
    return np.concatenate([head, np.packbits(np.concatenate([unary, rest]))])


def from_elias_fano(data: NDArray[np.uint8], *, most: int) -> Ids:
    """The ids that `elias_fano` wrote, at most so many.

    Raises:
        KnowledgeError: for bytes that it does not write.
    """
    if len(data) < _HEAD.size:
        raise _broken(len(data))
    count, length, bits = _HEAD.unpack(data[: _HEAD.size].tobytes())
    _checked(count, most)
    if bits > _MOST_LOW_BITS or (length + count * bits + 7) // 8 != len(data) - _HEAD.size:
        raise _broken(len(data))
    stream = np.unpackbits(data[_HEAD.size :])
    ones = np.flatnonzero(stream[:length])
    if len(ones) != count:
        raise _broken(len(data))
    low = stream[length : length + count * bits].reshape(count, bits).astype(np.int64) << np.arange(bits)
    ids: Ids = (ones - np.arange(count) << bits) + low.sum(axis=1)
    if (ids[:1] < 0).any() or (np.diff(ids) <= 0).any():
        raise _broken(len(data))
    return ids


def _checked(count: int, most: int) -> int:
    if count > most:
        raise KnowledgeError(f"{count} proxy samples", f"expected at most {most}", reason=Reason.SAMPLES)
    return count


def _broken(size: int) -> KnowledgeError:
    return KnowledgeError(f"sample ids in {size} bytes", "expected increasing ones", reason=Reason.SAMPLES)
