"""How raw inputs become what a model reads, as values without torch: a run and an exported student share them.

Statistics are those of the proxy set, never of private data. Sums are exact, so that every machine and thread count
gives the same bits: both sides compare the digest of the prepared proxy set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PADDING = 0
"""Byte of every band behind a recording's last frame; a band that is heard has at least 1."""

_LIMIT = 10.0
"""Standard deviations at which a table's numbers are cut: a value that the public set does not know cannot run away."""


class Preparation(Protocol):
    """A frozen dataclass of constants, all of them numbers or tuples of numbers.

    Attributes:
        kind: by which a card names it.
    """

    kind: ClassVar[str]

    def apply(self, raw: Array) -> Array:
        """Raw inputs (N, …) as a model reads them."""


def moments(values: Array) -> tuple[float, float]:
    """Mean and standard deviation of bytes or floats; (0, 1) of none, and a standard deviation of 1 for a constant."""
    count = values.size
    if not count:
        return 0.0, 1.0
    if values.dtype == np.uint8:
        frequency = np.bincount(values.ravel(), minlength=256).tolist()
        total = sum(value * times for value, times in enumerate(frequency))
        squares = sum(value * value * times for value, times in enumerate(frequency))
        return total / count, math.sqrt((squares * count - total * total) / count**2) or 1.0
    numbers = values.astype(np.float64).ravel()
    mean = math.fsum(numbers.tolist()) / count
    return mean, math.sqrt(math.fsum(((numbers - mean) ** 2).tolist()) / count) or 1.0


@dataclass(frozen=True, slots=True)
class AsRead:
    """Inputs that are ready as they are: token ids."""

    kind: ClassVar[str] = "as-read"

    def apply(self, raw: Array) -> Array:
        """The same array."""
        return raw


@dataclass(frozen=True, slots=True)
class Channels:
    """Images (N, C, H, W) of bytes or floats become float32, each channel with mean 0 and deviation 1 on the proxy set.

    Attributes:
        mean, deviation: of each channel.
    """

    kind: ClassVar[str] = "channels"

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, proxy: Array) -> Channels:
        """By the proxy set's raw images."""
        return cls(*_pairs([moments(proxy[:, channel]) for channel in range(proxy.shape[1])]))

    def apply(self, raw: Array) -> Array:
        """Float32 of the same shape."""
        return _standard(raw, self.mean, self.deviation, (1, -1, 1, 1))


@dataclass(frozen=True, slots=True)
class Bands:
    """Spectrograms (N, 1, mels, frames) of bytes become float32; padding becomes 0.

    Each band gets mean 0 and deviation 1 over what is heard in the proxy set.

    Attributes:
        mean, deviation: of each band.
    """

    kind: ClassVar[str] = "bands"

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, proxy: Array) -> Bands:
        """By the proxy set's raw spectrograms."""
        bands = [proxy[:, 0, band] for band in range(proxy.shape[2])]
        return cls(*_pairs([moments(band[band != PADDING]) for band in bands]))

    def apply(self, raw: Array) -> Array:
        """Float32 of the same shape."""
        ready = _standard(raw, self.mean, self.deviation, (1, 1, -1, 1))
        ready *= raw != PADDING
        return ready


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows (N, F) with NaN for what is missing become float32 without gaps.

    A column gets mean 0 and deviation 1 on the proxy set; one of nothing but 0 and 1 there (a flag, a one-hot column)
    stays as it is. Missing values become the proxy set's mean.

    Attributes:
        mean, deviation: of each column.
        flags: columns that stay as they are.
    """

    kind: ClassVar[str] = "columns"

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    flags: tuple[int, ...] = ()

    @classmethod
    def of(cls, proxy: Array) -> Columns:
        """By the proxy set's raw rows."""
        pairs, flags = [], []
        for place, column in enumerate(proxy.astype(np.float64).T):
            known = column[~np.isnan(column)]
            pairs.append(moments(known))
            if len(known) and bool(((known == 0) | (known == 1)).all()):
                flags.append(place)
        return cls(*_pairs(pairs), tuple(flags))

    def apply(self, raw: Array) -> Array:
        """Float32 (N, F)."""
        rows = raw.astype(np.float64)
        mean, deviation = np.array(self.mean), np.array(self.deviation)
        filled = np.where(np.isnan(rows), mean, rows)
        ready = (filled - mean) / deviation
        flags = list(self.flags)
        ready[:, flags] = filled[:, flags]
        cut: Array = np.clip(ready, -_LIMIT, _LIMIT).astype(np.float32)
        return cut


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers become shares of the highest one that there can be.

    Attributes:
        highest: of the scale.
    """

    kind: ClassVar[str] = "shares"

    highest: float

    def apply(self, raw: Array) -> Array:
        """Of the same shape and type."""
        shares: Array = raw / self.highest
        return shares


@dataclass(frozen=True, slots=True)
class SeldomWords:
    """Ids of words and of their shapes (N, L, 2) become one id for each word, (N, L).

    Attributes:
        known: ids of the words that stay; any other is read as its shape.
    """

    kind: ClassVar[str] = "seldom-words"

    known: tuple[int, ...]

    @classmethod
    def of(cls, proxy: Array, *, seldom: int, vocabulary: int) -> SeldomWords:
        """By the proxy set's words: those stay that it has `seldom` times or more."""
        times = np.bincount(proxy[..., 0].astype(np.int64).ravel(), minlength=vocabulary)
        return cls(tuple(np.flatnonzero(times >= seldom).tolist()))

    def apply(self, raw: Array) -> Array:
        """Int64 (N, L)."""
        words, shapes = raw[..., 0], raw[..., 1]
        return np.where(np.isin(words, self.known), words, shapes)


PREPARATIONS: dict[str, type[Preparation]] = {
    one.kind: one for one in (AsRead, Channels, Bands, Columns, Shares, SeldomWords)
}
"""Every kind by its name."""


def _pairs(found: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(mean for mean, _ in found), tuple(deviation for _, deviation in found)


def _standard(raw: Array, mean: Sequence[float], deviation: Sequence[float], shape: tuple[int, ...]) -> Array:
    ready = np.subtract(raw, np.array(mean, np.float32).reshape(shape), dtype=np.float32)
    ready /= np.array(deviation, np.float32).reshape(shape)
    return ready
