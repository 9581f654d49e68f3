"""Texts of one class each: topics, intents, questions, from CSV, JSON or line files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.classes import check_share, class_names, class_positions, set_aside
from fedstill.common.data.content import (
    bare_name,
    check_encoding,
    find_files,
    find_task_folder,
    read_content,
    told_as_data_errors,
)
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TOKENIZER, TextLines
from fedstill.common.data.tables import Column, Table
from fedstill.common.data.texts import LABEL_NAMES, SUFFIXES, TEXT_NAMES, label_owners, read_texts
from fedstill.common.data.tokenizer import Tokens, tokens_of
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes, label_space
from fedstill.common.metrics import accuracy, macro_f1
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class TextTask:
    """Tell the class of a text.

    The parts of a source are the lists of a JSON object, or its files: "test", "validation" or else "train" by their
    names; a source of one part is learnt from and measured with. In each file the label's column is the one with a
    usual name ("label", "intent" …), or the one with the fewest different cells; the others are the text. A JSON file
    of owner → labels beside the texts says whose they are.

    Attributes:
        source: a file, a pattern or a folder of .csv, .tsv, .json and .jsonl files, packed or not. A .txt file (LABEL
            text, or COARSE:FINE text, on each line) has to be named by itself or by a pattern.
        parts: the parts to learn from; out-of-scope texts are left out unless named here.
        test_parts: the parts to measure with.
        text: columns of the text; () to recognise them.
        label: column of the label; "" to recognise it.
        owner: whom a text belongs to: "file", or a column; "" for the owners of labels, if there are any.
        classes: names of the classes in the order of their labels; () for the labels themselves.
        vocabulary: token ids are below it.
        tokenizer: path of a tokenizer.json, which brings its own vocabulary; "" for hashed words.
        length: words (subwords of a tokenizer) of a text that are read.
        delimiter: of CSV files; "" for a comma, or a tab in .tsv files.
        encoding: of the files.
        test_share: share set aside to measure with, where there is no test part.
    """

    name: ClassVar[str] = "text"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "text"

    source: str
    parts: tuple[str, ...] = ("train",)
    test_parts: tuple[str, ...] = ("test",)
    text: tuple[Column, ...] = ()
    label: Column = ""
    owner: Column = ""
    classes: tuple[str, ...] = ()
    vocabulary: int = 8192
    tokenizer: str = ""
    length: int = 64
    delimiter: str = ""
    encoding: str = "utf-8"
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(2, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length)
        check_share(self.test_share)
        check_encoding(self.encoding)
        if len(self.delimiter) > 1:
            raise ConfigError(f"delimiter={self.delimiter!r}", "expected one character", "such as ',' or ';'")

    def load(self, folder: Path | None) -> TaskData:
        """Read the texts as token ids (N, length); kept for the next call in this process."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of text."""
        told = TextLines(self.vocabulary, self.length, encoding=self.encoding)
        if not self.tokenizer:
            return Usage(AsRead(), told)
        content = read_content(find_task_folder(folder, self.tokenizer))
        return Usage(AsRead(), replace(told, tokenizer=TOKENIZER), {TOKENIZER: content})

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy and macro-F1."""
        return {"accuracy": accuracy(logits, targets), "macro-f1": macro_f1(logits, targets)}


_File = tuple[str, Table]
"""A table with the name of its file, or of the file that it is a part of."""


@lru_cache(maxsize=2)
def _load(task: TextTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        parts, owner_of = _parts(task, folder)
        learnt = tuple(parts) if len(parts) == 1 else task.parts
        for part in learnt:
            if part not in parts:
                known = ", ".join(sorted(parts)) or "none, for it has no texts"
                raise DataError(
                    f"part '{part}' of '{task.source}'", f"expected one of {known}", "set the task's 'parts'"
                )
        files = [file for part in learnt for file in parts[part]]
        tested = [file for part in task.test_parts if part not in learnt for file in parts.get(part, ())]
        classes = label_space(task.classes or class_names(cell for _, table in files for cell in _labels(task, table)))
        # The pool is split by owner; a test part never is, and its files may lack the owner's column.
        owners = tuple(owner for file in files for owner in _owners(task, file, owner_of))
        tokens = tokens_of(task.tokenizer, folder, vocabulary=task.vocabulary)
        pool = _examples(task, files, classes, tokens, owners)
        test = _examples(task, tested, classes, tokens, ()) if tested else None
    if test is None:
        pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, classes, test, tokens.vocabulary, tokenizer=tokens.digest)


def _parts(task: TextTask, folder: Path | None) -> tuple[dict[str, list[_File]], dict[str, str]]:
    """The tables of each part, and the owner of each label."""
    parts: dict[str, list[_File]] = {}
    owner_of: dict[str, str] = {}
    named = [column for column in (task.label, task.owner, *task.text) if isinstance(column, str)]
    for path in find_files(folder, task.source, SUFFIXES):
        owners = label_owners(path)
        if owners is not None:
            owner_of |= owners
            continue
        tables = read_texts(path, named=named, delimiter=task.delimiter, encoding=task.encoding)
        for part, table in tables.items():
            parts.setdefault(part, []).append((bare_name(path).rpartition(".")[0], table))
    return parts, owner_of


def _examples(
    task: TextTask, files: list[_File], classes: Classes, tokens: Tokens, owners: tuple[str, ...]
) -> Examples:
    texts = [text for _, table in files for text in _texts(task, table)]
    targets = [class_positions(_labels(task, table), classes, table.where) for _, table in files]
    return Examples(tokens.ids(texts, length=task.length), torch.cat(targets), owners)


def _owners(task: TextTask, file: _File, owner_of: Mapping[str, str]) -> list[str]:
    name, table = file
    if task.owner == "file":
        return [name] * len(table.rows)
    if task.owner != "":
        return [cell or "unknown" for cell in table.cells(task.owner)]
    return [owner_of.get(label, "unknown") for label in _labels(task, table)] if owner_of else []


def _labels(task: TextTask, table: Table) -> list[str]:
    return table.cells(_label_column(task, table))


def _texts(task: TextTask, table: Table) -> list[str]:
    columns = [table.number(column) for column in task.text] or _text_columns(task, table)
    return [" ".join(row[place] for place in columns) for row in table.rows]


def _label_column(task: TextTask, table: Table) -> int:
    if task.label != "":
        return table.number(task.label)
    usual = [place for place, name in enumerate(table.columns) if name.lower() in LABEL_NAMES]
    if usual:
        return usual[0]
    if len(table.columns) < 2:
        raise DataError(f"{table.where}: one column", "expected texts and labels", "set the task's 'delimiter'")
    return min(range(len(table.columns)), key=lambda place: _variety(table.cells(place)))


def _variety(cells: list[str]) -> tuple[int, int]:
    """Number of different cells, then letters: labels are few, and short where a small file does not tell."""
    return len(set(cells)), sum(map(len, cells))


def _text_columns(task: TextTask, table: Table) -> list[int]:
    taken = {_label_column(task, table)}
    if task.owner not in ("", "file") and (isinstance(task.owner, int) or task.owner in table.columns):
        taken.add(table.number(task.owner))
    others = [place for place in range(len(table.columns)) if place not in taken]
    return [place for place in others if table.columns[place].lower() in TEXT_NAMES] or others
