"""Texts as token ids: hashed words without a word list, or the subwords of a tokenizer.json that all sides hold.

Ids begin at 1, for 0 is padding: a subword's id is its number in the tokenizer plus 1. So no tokenizer has to have a
padding token, or to number it 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.content import bare_name, find_files, find_task_folder, read_text, told_as_data_errors
from fedstill.common.data.texts import SUFFIXES, read_texts, token_ids
from fedstill.common.data.words import subword_numbers
from fedstill.common.errors import DataError

BYTES = 256
"""Letters of a byte-level alphabet: the least vocabulary of `train_bpe`."""


class Tokens(Protocol):
    """How texts become numbers."""

    @property
    def vocabulary(self) -> int:
        """Ids are below it."""

    @property
    def digest(self) -> str:
        """Of the tokenizer, which both sides compare; "" where there is nothing to agree on."""

    def ids(self, texts: Sequence[str], *, length: int) -> Tensor:
        """(N, length) int64; 0 is padding, and what exceeds `length` is cut."""


@dataclass(frozen=True, slots=True)
class HashedWords:
    """Words and marks by their hash, as `token_ids` numbers them.

    Attributes:
        vocabulary: ids are below it.
        digest: always "", for the hash is the same everywhere.
    """

    vocabulary: int
    digest: str = ""

    def ids(self, texts: Sequence[str], *, length: int) -> Tensor:
        """(N, length) int64."""
        return token_ids(texts, vocabulary=self.vocabulary, length=length)


@dataclass(frozen=True, slots=True, eq=False)
class Subwords:
    """The subwords of a tokenizer.json.

    Attributes:
        vocabulary: the tokenizer's size plus 1.
        digest: SHA-256 of the file's text, hexadecimal.
    """

    vocabulary: int
    digest: str
    _tokenizer: Any

    def ids(self, texts: Sequence[str], *, length: int) -> Tensor:
        """(N, length) int64; a tokenizer's marks of begin and end are set, and kept where a text is cut."""
        return torch.from_numpy(subword_numbers(self._tokenizer, texts, length=length))

    def texts(self, ids: Tensor) -> list[str]:
        """The texts of rows of ids (N, length) without padding and marks of begin and end."""
        return [self._tokenizer.decode([number - 1 for number in row if number > 0]) for row in ids.tolist()]


def tokens_of(tokenizer: str, folder: Path | None, *, vocabulary: int) -> HashedWords | Subwords:
    """A task's tokens: those of a tokenizer.json, or hashed words for "".

    Args:
        tokenizer: path of the file, in the data folder or absolute.
        folder: the data folder, or None.
        vocabulary: of hashed words; a tokenizer brings its own.

    Raises:
        DataError: if the file is missing or no tokenizer.
    """
    return read_tokenizer(find_task_folder(folder, tokenizer)) if tokenizer else HashedWords(vocabulary)


def read_tokenizer(path: Path) -> Subwords:
    """A tokenizer.json as the `tokenizers` library and Hugging Face write it.

    Raises:
        DataError: if the file is missing or no tokenizer.
    """
    with told_as_data_errors(str(path)):
        from tokenizers import Tokenizer
    text = read_text(path)
    try:
        tokenizer: Any = Tokenizer.from_str(text)
    except Exception as error:  # the library knows no kind of its own
        raise DataError(f"{path}", f"is no tokenizer: {error}", "make one with train_bpe") from None
    # Sides would differ where one file was saved with padding and the other was not.
    tokenizer.no_padding()
    return Subwords(
        max(tokenizer.get_vocab().values(), default=0) + 2, hashlib.sha256(text.encode()).hexdigest(), tokenizer
    )


def train_bpe(texts: Iterable[str], vocabulary: int, path: Path, *, lowercase: bool = True) -> str:
    """Learn a byte-level BPE from public texts and save it as a tokenizer.json; the same texts give the same file.

    Sennrich et al. 2016, https://arxiv.org/abs/1508.07909. Any text can be written with it, for its letters are bytes.

    Args:
        texts: public ones: what is in the vocabulary was in the texts.
        vocabulary: number of subwords, 256 or more; fewer if the texts do not have so many pairs.
        path: the file to write.
        lowercase: whether capitals count as small letters, as in hashed words.

    Returns:
        Digest of the file, which both sides compare.

    Raises:
        ConfigError: if the vocabulary is too small for the bytes.
        DataError: if there is no text, or the file cannot be written.
    """
    check.at_least(BYTES, vocabulary=vocabulary)
    given = [text for text in texts if text.strip()]
    if not given:
        raise DataError("texts for a tokenizer", "expected one at least")
    with told_as_data_errors(str(path)):
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer: Any = Tokenizer(models.BPE())
        forms = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
        tokenizer.normalizer = normalizers.Sequence(forms)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            given,
            trainers.BpeTrainer(
                vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
            ),
        )
        path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    return read_tokenizer(path).digest


def public_texts(folder: Path | None, source: str, *, encoding: str = "utf-8") -> Iterator[str]:
    """The texts of a file, a pattern or a folder, to train a tokenizer on: lines of .txt files, cells of tables.

    Raises:
        DataError: if there is none, or a file is damaged.
    """
    for path in find_files(folder, source, (".txt", *SUFFIXES)):
        if bare_name(path).endswith(SUFFIXES):
            for table in read_texts(path, encoding=encoding).values():
                yield from (cell for row in table.rows for cell in row)
        else:
            yield from read_text(path, encoding=encoding).splitlines()
