"""Square roots of probabilities on a few levels, entropy-coded in the context of what the other side knows already.

Roots are the coordinates in which distributions have the same meaning everywhere: the Euclidean distance between two
is √2 times their Hellinger distance. A level is the root over a step of 1/S, rounded. The decoder squares, gives zeros
even shares of the mass that is left, less than that of half a step, and brings each row to a sum of 1. Of many classes
most are zeros, and what a student leaves to them is its doubt. With e = √C / 2S, the roots' largest distance, the error
is

    Σ_c |p̂_c − p_c| <= 2e,    |p̂_c − p_c| <= e,

for sin of the angle between root and level vector is at most e, and Σ|u² − v²| <= ‖u − v‖ ‖u + v‖ = 2 sin of it.
A row of one level only goes as zeros, which decode to the even distribution too: clients that doubt say it often, and
zeros cost least.

The levels are coded as `_levels` says. A message is a vector of bytes: a check sum (CRC-32, little-endian, of all that
follows), the format, S, which earlier messages it was coded in the context of (bits), the digest of these (8 bytes, if
there are any), the shape and the coded levels.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common import check
from fedstill.common.codec import Known
from fedstill.common.codecs import _levels
from fedstill.common.codecs._rows import has_distributions, normalised, packed_bytes, read_shape, write_shape
from fedstill.common.errors import ConfigError, KnowledgeError, Reason
from fedstill.common.knowledge import Arrays

MOST_LEVELS = 31
"""Largest S."""

WIDEST = 1024
"""Classes of a row."""

LARGEST = 2**22
"""Numbers of an array: a small message must keep nobody busy for long."""

_MOST_OF_A_ZERO = 0.2
"""Of a step squared. Half a step's is 0.25; a little less: a row brought to its sum still reads as the same levels."""

_PACKED = ":sqrtp"
_FORMAT = 3
_HEAD = struct.Struct("<IBBB")
_DIGEST = 8

_Sides = Sequence[NDArray[np.float32] | None]


@dataclass(frozen=True, slots=True)
class SqrtP:
    """Square roots of distributions in steps of 1/5, entropy-coded: a few bits a row; other arrays as they are.

    Attributes:
        levels: S, steps from 0 to 1.

    Raises:
        ConfigError: if `constriction` is not installed, or for a number of levels outside 1 to 31.
    """

    name: ClassVar[str] = "sqrtp"
    paper: ClassVar[str] = ""
    uses_context: ClassVar[bool] = True

    levels: int = 5

    def __post_init__(self) -> None:
        check.between(1, MOST_LEVELS, codec_levels=self.levels)
        try:
            _levels.constriction()
        except ImportError:
            raise ConfigError(
                "codec='sqrtp' without the package constriction",
                "expected the extra 'codec'",
                "pip install 'fedstill[codec]', on both sides",
            ) from None

    def encode(self, arrays: Arrays, known: Known = {}) -> Arrays:
        """One vector of bytes for each array (…, C) of distributions, C from 2 to 1024.

        Args:
            arrays: by name.
            known: of some of them what the decoder knows, too; it has to be given the same.
        """
        packed: dict[str, NDArray[np.generic]] = {}
        for name, array in arrays.items():
            if has_distributions(array) and 2 <= array.shape[-1] <= WIDEST and array.size <= LARGEST:
                # What was known before may say less than nothing: the shorter message goes.
                data = min((self._encoded(array, sides) for sides in _ways(known.get(name, ()))), key=len)
                packed[name + _PACKED] = np.frombuffer(data, dtype=np.uint8)
            else:
                packed[name] = array
        return packed

    def decode(self, arrays: Arrays, known: Known = {}) -> Arrays:
        """The distributions, float32.

        Raises:
            KnowledgeError: for bytes that no encoder made, or that were coded in the context of something else.
        """
        unpacked: dict[str, NDArray[np.generic]] = {}
        for key, array in arrays.items():
            if key.endswith(_PACKED):
                name = key.removesuffix(_PACKED)
                unpacked[name] = _decoded(name, packed_bytes(name, array), known.get(name, ()))
            else:
                unpacked[key] = array
        return unpacked

    def _encoded(self, array: NDArray[np.generic], known: _Sides) -> bytes:
        rows = array.reshape(-1, array.shape[-1])
        levels = _quantised(rows.astype(np.float64), self.levels)
        mask, sides = _sides(known, rows.shape, self.levels)
        head = _HEAD.pack(0, _FORMAT, self.levels, mask) + _digest(sides) + write_shape(array.shape)
        body = head[4:] + _levels.encode_levels(levels, np.all(rows == 0, axis=-1), sides, self.levels)
        return struct.pack("<I", zlib.crc32(body)) + body


def _ways(known: _Sides) -> list[_Sides]:
    """The contexts in which a message can be coded: in that of nothing, or of what is known."""
    return [(), known] if any(one is not None for one in known) else [()]


def _quantised(rows: NDArray[np.float64], top: int) -> NDArray[np.int64]:
    """Levels of rows of probabilities: both square root and product are rounded correctly on every machine."""
    levels: NDArray[np.int64] = np.rint(np.sqrt(np.clip(rows, 0, 1)) * top).astype(np.int64)
    levels[levels.min(-1) == levels.max(-1)] = 0
    return levels


def _decoded(name: str, data: bytes, known: _Sides) -> NDArray[np.float32]:
    if len(data) < _HEAD.size or zlib.crc32(data[4:]) != struct.unpack("<I", data[:4])[0]:
        raise KnowledgeError(f"'{name}' of {len(data)} bytes", "expected a message whose check sum is right")
    _, version, top, mask = _HEAD.unpack(data[: _HEAD.size])
    if version != _FORMAT or not 1 <= top <= MOST_LEVELS:
        raise KnowledgeError(
            f"'{name}' of format {version} with {top} levels", f"expected format {_FORMAT} and 1 to {MOST_LEVELS}"
        )
    start = _HEAD.size + (_DIGEST if mask else 0)
    shape, coded = read_shape(name, data[start:])
    if not 2 <= shape[-1] <= WIDEST or not 0 < math.prod(shape) <= LARGEST:
        raise KnowledgeError(
            f"'{name}' of unpacked shape {shape}",
            f"expected 2 to {WIDEST} classes and at most {LARGEST} numbers",
            reason=Reason.TOO_LARGE,
        )
    flat = (math.prod(shape[:-1]), shape[-1])
    sides: Sequence[NDArray[np.int64]] = ()
    if mask:
        usable = [one if mask >> place & 1 else None for place, one in enumerate(known)]
        own, sides = _sides(usable, flat, top)
        if own != mask or _digest(sides) != data[_HEAD.size : start]:
            raise KnowledgeError(
                f"'{name}' coded in the context of other messages",
                "expected those that this side has",
                reason=Reason.CONTEXT,
            )
    levels, blank = _levels.decode_levels(coded, flat, sides, top)
    return normalised(_squares(levels, blank, top)).reshape(shape)


def _squares(levels: NDArray[np.int64], blank: NDArray[np.bool_], top: int) -> NDArray[np.float64]:
    """What levels stand for, in units of 1/S²: their squares, and an even share of what these leave for each zero."""
    squares: NDArray[np.float64] = levels.astype(np.float64) ** 2
    zeros = levels == 0
    left = np.maximum(top**2 - squares.sum(-1), 0)
    share = np.minimum(left / np.maximum(zeros.sum(-1), 1), _MOST_OF_A_ZERO)
    return np.where(zeros & ~blank[:, None], share[:, None], squares)


def _sides(known: _Sides, shape: tuple[int, ...], top: int) -> tuple[int, list[NDArray[np.int64]]]:
    """Which of what is known tells anything (bits), and its levels; −1 where there is nothing."""
    mask, sides = 0, []
    for place, one in enumerate(known):
        if one is None or one.size != math.prod(shape) or np.isnan(one).all():
            continue
        there = ~np.isnan(rows := one.reshape(shape).astype(np.float64))
        sides.append(np.where(there, _quantised(np.nan_to_num(rows), top), -1))
        mask |= 1 << place
    return mask, sides


def _digest(sides: Sequence[NDArray[np.int64]]) -> bytes:
    """Eight bytes for what a message was coded in the context of; none without any."""
    if not sides:
        return b""
    content = hashlib.sha256()
    for side in sides:
        content.update(side.astype(np.int8).tobytes())
    return content.digest()[:_DIGEST]
