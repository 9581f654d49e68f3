"""Rows of small whole numbers through a range coder, with adaptive integer tables.

A row holds levels 0 … S, one for each class; the sum of their squares is about S², for they are S·√p rounded. They are
coded one after the other in blocks of rows: a block is coded with the tables that the rows before it have left, so that
a whole column of a block is one call of the range coder. Encoder and decoder run the same walk.

The tables are counts in 64-bit integers. Before a block they are brought to a sum of 2²⁴ − (S + 1) in integer
arithmetic. `constriction` takes them as float64, which holds them exactly; it scales by (2²⁴ − (S + 1)) / sum, which is
1, truncates, and adds 1 to each. So no frequency depends on how a machine rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError

Levels = NDArray[np.int64]

_PRECISION = 24
"""Bits of a frequency: constriction's."""

_SEEN, _LIKELY = 64, 16
"""What an observation adds to its count, and what a count starts with, over 1, where the context makes it likely."""

_STRENGTH = 6
"""How many observations the table of a wide context counts as in the narrow contexts within it."""

_MOST_COUNTS = 2**20
"""Counts of all narrow contexts; where there would be more, the wide ones have to do."""

_SMALLEST, _LARGEST = 16, 2**15
"""Rows of a block: at first, and at most; between them half of the rows before it."""


def encode_levels(levels: Levels, blank: NDArray[np.bool_], sides: Sequence[Levels], top: int) -> bytes:
    """Levels as bytes.

    Args:
        levels: (N, C) from 0 to `top`; zeros where `blank`.
        blank: (N,) rows without a label.
        sides: what the other side knows too, (N, C) each: levels of earlier messages, −1 where there is none.
        top: S, the largest level.
    """
    coder = _Encoder(constriction())
    _walk(coder, levels, blank, sides, top)
    return coder.bytes()


def decode_levels(
    data: bytes, shape: tuple[int, int], sides: Sequence[Levels], top: int
) -> tuple[Levels, NDArray[np.bool_]]:
    """The inverse of `encode_levels`: levels (N, C) and blank rows (N,).

    Raises:
        KnowledgeError: if the bytes are none of this coder's.
    """
    if len(data) % 4:
        raise KnowledgeError(f"{len(data)} coded bytes", "expected whole words of four")
    levels, blank = np.zeros(shape, dtype=np.int64), np.zeros(shape[0], dtype=bool)
    coder = _Decoder(constriction(), np.frombuffer(data, dtype="<u4").astype(np.uint32))
    _walk(coder, levels, blank, sides, top)
    coder.end()
    return levels, blank


def constriction() -> Any:
    """The range coder's package.

    Raises:
        ImportError: if it is not installed.
    """
    import constriction as package

    return package


class _Coder(Protocol):
    """One direction: what `symbols` are, or become."""

    def code(self, symbols: Levels, tables: NDArray[np.float64]) -> Levels:
        """Code one symbol with each table; an encoder takes them, a decoder gives them."""


class _Encoder:
    def __init__(self, package: Any) -> None:
        self._coder = package.stream.queue.RangeEncoder()
        self._family = package.stream.model.Categorical(perfect=False)

    def code(self, symbols: Levels, tables: NDArray[np.float64]) -> Levels:
        self._coder.encode(symbols.astype(np.int32), self._family, tables)
        return symbols

    def bytes(self) -> bytes:
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes()


class _Decoder:
    def __init__(self, package: Any, words: NDArray[np.uint32]) -> None:
        self._coder = package.stream.queue.RangeDecoder(words)
        self._family = package.stream.model.Categorical(perfect=False)

    def code(self, symbols: Levels, tables: NDArray[np.float64]) -> Levels:
        try:
            found: Levels = self._coder.decode(self._family, tables).astype(np.int64)
        except AssertionError as error:  # constriction's word for bytes that no encoder makes
            raise KnowledgeError("coded levels", str(error)) from None
        return found

    def end(self) -> None:
        if not self._coder.maybe_exhausted():
            raise KnowledgeError("coded levels", "expected no bytes after them")


def _walk(coder: _Coder, levels: Levels, blank: NDArray[np.bool_], sides: Sequence[Levels], top: int) -> None:
    """Code all levels in their order; a decoder fills `levels` and `blank`."""
    tables = _Tables(levels.shape, sides, top)
    blanks = np.array([[2 * _LIKELY, 1]], dtype=np.int64)
    for start, end in _blocks(len(levels)):
        block = np.arange(start, end)
        told = coder.code(blank[block].astype(np.int64), np.repeat(_frequencies(blanks), len(block), axis=0))
        blank[block] = told > 0
        blanks += np.bincount(told, minlength=2) * _SEEN
        labelled = block[told == 0]
        if len(labelled):
            _walk_block(coder, levels, labelled, tables)


def _walk_block(coder: _Coder, levels: Levels, block: Levels, tables: _Tables) -> None:
    rest = np.full(len(block), tables.top**2)
    most = np.zeros(len(block), dtype=np.int64)
    leader = np.full(len(block), levels.shape[1])
    seen = []
    base = tables.base()
    for place in range(levels.shape[1]):
        columns = tables.order[block, place]
        wide, narrow = tables.contexts(block, columns, rest, leader)
        found = coder.code(levels[block, columns], _frequencies(tables.narrow[narrow] + base[wide]))
        levels[block, columns] = found
        rest = np.maximum(rest - found * found, 0)
        leader = np.where(found > most, columns, leader)
        most = np.maximum(found, most)
        seen.append((wide, narrow, found))
    for wide, narrow, found in seen:
        np.add.at(tables.wide, (wide, found), _SEEN)
        np.add.at(tables.narrow, (narrow, found), _SEEN)


class _Tables:
    """What was seen so far, in wide contexts and in the narrow ones within each.

    Without earlier messages a wide context is the class and the mass that is left; a narrow one adds the class that has
    most so far. With them a wide one is what they say of the class, and the mass that is left; a narrow one adds both
    classes, or the first one only where there are many. Classes that had more then come first: little mass is left for
    the others.
    """

    def __init__(self, shape: tuple[int, ...], sides: Sequence[Levels], top: int) -> None:
        classes = shape[1]
        self.top = top
        self.by_class = bool(sides)
        self.kinds = np.zeros(shape, dtype=np.int64) if sides else np.broadcast_to(np.arange(classes), shape)
        for side in sides:
            self.kinds = self.kinds * (top + 2) + side + 1
        self.order = np.argsort(-self.kinds, axis=1, kind="stable") if sides else self.kinds
        self.wide = _first_counts(classes, len(sides), top)
        inner = (classes * (classes + 1), classes, 1) if sides else (classes + 1, 1)
        self.inner = next(one for one in inner if one == 1 or self.wide.size * one <= _MOST_COUNTS)
        self.narrow = np.zeros((len(self.wide) * self.inner, top + 1), dtype=np.int64)
        self._roots = np.array([math.isqrt(rest) for rest in range(top**2 + 1)])

    def base(self) -> Levels:
        """What narrow contexts start from: the tables of the wide ones."""
        return _scaled(self.wide, _STRENGTH * _SEEN)

    def contexts(self, block: Levels, columns: Levels, rest: Levels, leader: Levels) -> tuple[Levels, Levels]:
        """Wide and narrow contexts of one number of each row of a block."""
        wide = self.kinds[block, columns] * (self.top + 1) + self._roots[rest]
        if self.inner == 1:
            return wide, wide
        detail = leader if not self.by_class else columns
        if self.by_class and self.inner > self.kinds.shape[1]:
            detail = columns * (self.kinds.shape[1] + 1) + leader
        return wide, wide * self.inner + detail


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < rows:
        end = min(start + min(max(_SMALLEST, start // 2), _LARGEST), rows)
        yield start, end
        start = end


def _first_counts(classes: int, sides: int, top: int) -> Levels:
    """(contexts, S + 1) counts before anything was seen: what earlier messages said is likely again."""
    size, spread = top + 1, top + 2
    if not sides:
        return np.ones((classes * size, size), dtype=np.int64)
    kinds = np.arange(spread**sides)
    counts = np.ones((len(kinds), size, size), dtype=np.int64)
    for side in range(sides):
        said = kinds // spread ** (sides - 1 - side) % spread - 1
        told = np.flatnonzero(said >= 0)
        counts[told, :, said[told]] += _LIKELY
    return counts.reshape(-1, size)


def _scaled(counts: Levels, whole: int) -> Levels:
    """Counts brought to a sum; what division leaves over goes to the largest."""
    scaled: Levels = counts * whole // counts.sum(1, keepdims=True)
    scaled[np.arange(len(scaled)), scaled.argmax(1)] += whole - scaled.sum(1)
    return scaled


def _frequencies(counts: Levels) -> NDArray[np.float64]:
    """Counts brought to a sum of 2²⁴ less one for each symbol, as the range coder takes them."""
    return _scaled(counts, 2**_PRECISION - counts.shape[1]).astype(np.float64)
