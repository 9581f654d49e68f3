"""Texts as numbers, without torch: hashed words, shapes of words, subwords of a tokenizer."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and marks of a text in lower case."""
    return _WORD.findall(text.lower())


def word_numbers(rows: Sequence[Sequence[str]], *, vocabulary: int, length: int) -> NDArray[np.int64]:
    """Words as numbers: (N, length).

    A word's id is 1 + crc32 mod (vocabulary − 1), the same everywhere and without a word list to agree on; different
    words may share one. 0 is padding; what exceeds `length` is cut.
    """
    numbers = np.zeros((len(rows), length), dtype=np.int64)
    known: dict[str, int] = {}
    for row, words in enumerate(rows):
        for place, word in enumerate(words[:length]):
            if word not in known:
                known[word] = 1 + zlib.crc32(word.encode()) % (vocabulary - 1)
            numbers[row, place] = known[word]
    return numbers


def subword_numbers(tokenizer: Any, texts: Sequence[str], *, length: int) -> NDArray[np.int64]:
    """Subwords as numbers: (N, length); an id is the tokenizer's plus 1, for 0 is padding.

    A tokenizer's marks of begin and end are set, and kept where a text is cut.

    Args:
        tokenizer: of the `tokenizers` library.
        texts: any.
        length: subwords of a text that are read.
    """
    tokenizer.enable_truncation(length)
    # One by one: a batch starts threads, which a process that is forked later (Ray) would miss.
    return padded([[number + 1 for number in tokenizer.encode(text).ids] for text in texts], length)


def padded(rows: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    """Numbers cut or filled with 0 to one length: (N, length)."""
    numbers = np.zeros((len(rows), length), dtype=np.int64)
    for row, found in zip(numbers, rows, strict=True):
        kept = found[:length]
        row[: len(kept)] = kept
    return numbers


def shape_of(word: str) -> str:
    """Such as "Xx" for "Meghan", "Xxd" for "Boeing747" and "@x" for "@jack"; the blank keeps it apart from words."""
    marks = re.sub(r"\d", "d", re.sub(r"[^\W\d_]", lambda letter: "X" if letter[0].isupper() else "x", word))
    return "shape " + re.sub(r"(.)\1+", r"\1", marks)
