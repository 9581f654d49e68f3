"""How files become the raw inputs of a model, as values without torch: what an exported student reads by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from fedstill.common.data.archives import ARCHIVES, FileStore, open_files
from fedstill.common.data.audio import SUFFIXES as SOUNDS
from fedstill.common.data.audio import read_wav
from fedstill.common.data.content import read_text, told_as_data_errors, unreadable
from fedstill.common.data.images import SUFFIXES as IMAGES
from fedstill.common.data.images import decode
from fedstill.common.data.preparation import Array
from fedstill.common.data.spectrogram import log_mel
from fedstill.common.data.tables import Table, read_csv
from fedstill.common.data.words import padded, shape_of, split_words, subword_numbers, word_numbers
from fedstill.common.errors import DataError

Rows = tuple[list[str], Array]
"""A name for each row, and raw inputs (N, …)."""


MODES = {1: "L", 3: "RGB"}
"""How images of so many channels are decoded."""

TOKENIZER = "tokenizer.json"
"""A tokenizer's file beside a model."""


class Reader(Protocol):
    """A frozen dataclass of options.

    Attributes:
        kind: by which a card names it.
        accepts: what it reads, for messages.
    """

    kind: ClassVar[str]
    accepts: ClassVar[str]

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """The raw inputs that files hold.

        Args:
            paths: files, or folders and archives of them.
            folder: of the exported student, where the files lie that the reader needs.

        Raises:
            DataError: if one is missing, damaged, or of another form.
        """


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images as bytes (N, C, H, W).

    Attributes:
        height, width: of the model's inputs.
        mode: "L" for grey ones, "RGB" for coloured ones.
        resize: whether images of another size are brought to this one.
        negative: dark on light becomes light on dark.
    """

    kind: ClassVar[str] = "images"
    accepts: ClassVar[str] = "image files, or folders and archives of them"

    height: int
    width: int
    mode: str = "L"
    resize: bool = True
    negative: bool = False

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """One row for each image, by its path."""
        with _opened(paths, IMAGES, noun="images") as store:
            size = (self.height, self.width) if self.resize else None
            pixels = decode(store, store.names, size=size, mode=self.mode)
        if pixels.shape[2:] != (self.height, self.width):
            raise DataError(
                f"{store.names[0]} of {pixels.shape[2]} × {pixels.shape[3]} pixels",
                f"expected {self.height} × {self.width}",
                "resize it as the images were that the model learnt from",
            )
        return list(store.names), 255 - pixels if self.negative else pixels


@dataclass(frozen=True, slots=True)
class WaveFiles:
    """Recordings as log-mel spectrograms: bytes (N, 1, mels, frames).

    Attributes:
        rate: samples a second of what the model learnt from.
        mels, window, hop, seconds: see `log_mel`.
    """

    kind: ClassVar[str] = "recordings"
    accepts: ClassVar[str] = "WAV files, or folders and archives of them"

    rate: int
    mels: int
    window: float
    hop: float
    seconds: float

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """One row for each recording, by its path."""
        with _opened(paths, SOUNDS, noun="recordings") as store:
            found = [read_wav(store.read(name), name) for name in store.names]
        for one in found:
            if one.rate != self.rate:
                raise DataError(f"{one.where} of {one.rate} Hz", f"expected {self.rate} Hz", "resample it")
        pictures = log_mel(found, mels=self.mels, window=self.window, hop=self.hop, seconds=self.seconds)
        return [one.where for one in found], pictures


@dataclass(frozen=True, slots=True)
class TableFiles:
    """Rows of CSV files as float64 (N, F), NaN for what is missing.

    With a header, features are found by the names of their columns, and others are left out; without one, a file has
    all columns of the data set, or the features alone in their order.

    Attributes:
        names: of the columns that are features.
        places: where they stand in a file without a header.
        words: of each of them, the words that become a 0-1 column each; None for a column of numbers.
        columns: of a file without a header.
        header, delimiter, encoding, comment, missing: as in the task `tabular`.
    """

    kind: ClassVar[str] = "table"
    accepts: ClassVar[str] = "CSV files"

    names: tuple[str, ...]
    places: tuple[int, ...]
    words: tuple[tuple[str, ...] | None, ...]
    columns: int
    header: bool = True
    delimiter: str = ","
    encoding: str = "utf-8"
    comment: str = ""
    missing: tuple[str, ...] = ()

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """One row for each row, by its file and number."""
        names, rows = [], []
        for path in paths:
            with told_as_data_errors(str(path)):
                table = read_csv(
                    path, header=self.header, delimiter=self.delimiter, encoding=self.encoding, comment=self.comment
                )
            places = self._places(table)
            names += [f"{path}:{number}" for number in range(1, len(table.rows) + 1)]
            for number, row in enumerate(table.rows, start=1):
                cells = [row[place] for place in places]
                rows.append(list(self._numbers(cells, f"{path}: row {number}")))
        return names, np.array(rows, dtype=np.float64)

    def _places(self, table: Table) -> Sequence[int]:
        if self.header:
            return [table.number(name) for name in self.names]
        if len(table.columns) not in (self.columns, len(self.names)):
            raise DataError(
                f"{table.where} of {len(table.columns)} columns",
                f"expected {self.columns}, or the {len(self.names)} that are features",
            )
        return self.places if len(table.columns) == self.columns else range(len(self.names))

    def _numbers(self, cells: Sequence[str], where: str) -> Iterator[float]:
        for cell, name, words in zip(cells, self.names, self.words, strict=True):
            known = "" if cell in self.missing else cell
            if words is not None:
                yield from (float(known == word) for word in words)
                continue
            try:
                value = float(known) if known else math.nan
            except ValueError:
                value = math.inf
            if math.isinf(value) or (known and math.isnan(value)):
                raise DataError(f"{where}: '{cell}' in column '{name}'", "expected a finite number", "mend it")
            yield value


@dataclass(frozen=True, slots=True)
class TextLines:
    """Lines of text as token ids: int64 (N, L), or (N, S, L) of several texts on a line with tabs between.

    Attributes:
        vocabulary: ids are below it.
        length: words (subwords of a tokenizer) of a text that are read.
        texts: S; 1 for one text on a line, and no axis for it.
        mark: the last id of the vocabulary stands before the words.
        tokenizer: file with the tokenizer; "" for hashed words.
        encoding: of the files.
    """

    kind: ClassVar[str] = "lines"
    accepts: ClassVar[str] = "text files, one text a line"

    vocabulary: int
    length: int
    texts: int = 1
    mark: bool = False
    tokenizer: str = ""
    encoding: str = "utf-8"

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """One row for each line that is not empty, by its file and number."""
        names, lines = _lines(paths, self.encoding)
        if self.texts == 1:
            return names, self._ids(lines, folder)
        cells = [line.split("\t") for line in lines]
        for name, row in zip(names, cells, strict=True):
            if len(row) != self.texts:
                raise DataError(f"{name} of {len(row)} texts", f"expected {self.texts}, with tabs between")
        ids = self._ids([text for row in cells for text in row], folder)
        return names, ids.reshape(len(names), self.texts, self.length)

    def _ids(self, texts: Sequence[str], folder: Path) -> Array:
        if self.tokenizer:
            return subword_numbers(_tokenizer(folder / self.tokenizer), texts, length=self.length)
        words = [split_words(text) for text in texts]
        if not self.mark:
            return word_numbers(words, vocabulary=self.vocabulary, length=self.length)
        ids = word_numbers(words, vocabulary=self.vocabulary - 1, length=self.length)
        return np.pad(ids, ((0, 0), (1, 0)), constant_values=self.vocabulary - 1)


@dataclass(frozen=True, slots=True)
class WordLines:
    """Lines of words with blanks between as ids of words and of their shapes: int64 (N, L, 2).

    Attributes:
        vocabulary: ids are below it.
        length: words of a line that are read.
        encoding: of the files.
    """

    kind: ClassVar[str] = "words"
    accepts: ClassVar[str] = "text files, one sentence a line, blanks between words and marks"

    vocabulary: int
    length: int
    encoding: str = "utf-8"

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """One row for each line that is not empty, by its file and number."""
        names, lines = _lines(paths, self.encoding)
        words = [line.split() for line in lines]
        forms = ([[word.lower() for word in row] for row in words], [[shape_of(word) for word in row] for row in words])
        ids = [word_numbers(form, vocabulary=self.vocabulary, length=self.length) for form in forms]
        return names, np.stack(ids, -1)


@dataclass(frozen=True, slots=True)
class Sentences:
    """Lines to be translated as token ids with room for the translation behind them: int64 (N, L + T).

    Attributes:
        tokenizer: file with the tokenizer of the language that is read.
        length: L, tokens of a sentence that are read.
        target_length: T, tokens of a translation.
        encoding: of the files.
    """

    kind: ClassVar[str] = "sentences"
    accepts: ClassVar[str] = "text files, one sentence a line"

    tokenizer: str
    length: int
    target_length: int
    encoding: str = "utf-8"

    def read(self, paths: Sequence[Path], folder: Path) -> Rows:
        """One row for each line that is not empty, by its file and number."""
        names, lines = _lines(paths, self.encoding)
        tokenizer = _tokenizer(folder / self.tokenizer)
        ids = padded([tokenizer.encode(line).ids for line in lines], self.length)
        return names, np.pad(ids, ((0, 0), (0, self.target_length)))


READERS: dict[str, type[Reader]] = {
    one.kind: one for one in (ImageFiles, WaveFiles, TableFiles, TextLines, WordLines, Sentences)
}
"""Every kind by its name."""


@contextmanager
def _opened(paths: Sequence[Path], suffixes: tuple[str, ...], *, noun: str) -> Iterator[FileStore]:
    """All files, and those in folders and archives, as one store by their whole paths."""
    found: dict[str, Callable[[], bytes]] = {}
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(told_as_data_errors(str(path)))
            if path.is_dir() or path.name.lower().endswith(ARCHIVES):
                store = stack.enter_context(open_files(path, suffixes, noun=noun))
                found |= {str(path / name): partial(store.read, name) for name in store.names}
            else:
                found[str(path)] = partial(_bytes, path)
        yield FileStore(tuple(found), lambda name: found[name]())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def _lines(paths: Sequence[Path], encoding: str) -> tuple[list[str], list[str]]:
    names, lines = [], []
    for path in paths:
        # Not splitlines: marks inside a text (U+2028, say) would end it.
        for number, line in enumerate(read_text(path, encoding=encoding).split("\n"), start=1):
            if line.strip():
                names.append(f"{path}:{number}")
                lines.append(line.rstrip("\r"))
    if not lines:
        raise DataError(", ".join(map(str, paths)), "expected at least one line that is not empty")
    return names, lines


def _tokenizer(path: Path) -> Any:
    with told_as_data_errors(str(path)):
        from tokenizers import Tokenizer
    try:
        tokenizer: Any = Tokenizer.from_str(read_text(path))
    except Exception as error:  # the library knows no kind of its own
        raise DataError(f"{path}", f"is no tokenizer: {error}", "export the model again") from None
    tokenizer.no_padding()
    return tokenizer
