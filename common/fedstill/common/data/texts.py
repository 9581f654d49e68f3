"""Texts from CSV, JSON and line files as tables, and their words as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedstill.common.data.content import bare_name, part_of, read_text
from fedstill.common.data.tables import Table, parse_csv
from fedstill.common.data.words import split_words, word_numbers
from fedstill.common.errors import DataError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")

LABEL_NAMES = ("label", "class", "intent", "category", "target", "topic", "sentiment")
TEXT_NAMES = ("text", "sentence", "utterance", "title", "description", "content", "question", "review")


def token_ids(texts: Sequence[str], *, vocabulary: int, length: int) -> Tensor:
    """Words and marks of lower-cased texts as numbers, by the rule of `word_numbers`: (N, length) int64."""
    return word_ids([split_words(text) for text in texts], vocabulary=vocabulary, length=length)


def word_ids(rows: Sequence[Sequence[str]], *, vocabulary: int, length: int) -> Tensor:
    """Words as numbers, by the rule of `word_numbers`: (N, length) int64."""
    return torch.from_numpy(word_numbers(rows, vocabulary=vocabulary, length=length))


def read_texts(
    path: Path, *, named: Iterable[str] = (), delimiter: str = "", encoding: str = "utf-8"
) -> dict[str, Table]:
    """The tables of a file of texts, by part: "train", "test" or the keys of a JSON object.

    A CSV file's first row is a header if it has a usual name of a column, or one of `named`. JSON is a list of rows,
    one row a line, or an object with a list of rows for each part; a row is a list of cells or an object. A line of a
    .txt file, unless a delimiter is named, is a label, a space and the text; of a label COARSE:FINE, the coarse one is
    in the column "label" and the whole one in "fine-label".

    Raises:
        DataError: if the file is missing, damaged or of another form.
    """
    text = read_text(path, encoding=encoding)
    name = bare_name(path)
    if name.endswith(".txt") and not delimiter:
        return {part_of(name): _labelled_lines(text, str(path))}
    if not name.endswith((".json", ".jsonl")):
        mark = delimiter or ("\t" if name.endswith(".tsv") else ",")
        header = {*LABEL_NAMES, *TEXT_NAMES, *(word.lower() for word in named)}
        return {part_of(name): parse_csv(text, str(path), header=header, delimiter=mark)}
    content = parse_json(text, path)
    if isinstance(content, dict):
        return {part: _table(rows, f"{path}: {part}") for part, rows in content.items()}
    return {part_of(name): _table(content, str(path))}


def label_owners(path: Path) -> dict[str, str] | None:
    """The owner of each label, from a JSON object of owner → labels; None if the file is anything else."""
    if not bare_name(path).endswith(".json"):
        return None
    content = parse_json(read_text(path), path)
    if not isinstance(content, dict) or not content:
        return None
    lists = [labels for labels in content.values() if isinstance(labels, list) and labels]
    if len(lists) != len(content) or not all(isinstance(label, str) for labels in lists for label in labels):
        return None
    return {label: owner for owner, labels in content.items() for label in labels}


def parse_json(text: str, path: Path) -> Any:
    """The value of a JSON text, or of a text of one value a line if the file's name says .jsonl.

    Raises:
        DataError: if it is no JSON.
    """
    try:
        if bare_name(path).endswith(".jsonl"):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}", f"is no JSON: {error}", "fetch the file again") from None


def _labelled_lines(text: str, where: str) -> Table:
    rows = []
    # Not `splitlines`: in an 8-bit encoding, characters that it takes for ends of lines stand inside of texts.
    for number, line in enumerate(text.split("\n"), start=1):
        label, _, words = line.strip().partition(" ")
        if label and not words:
            raise DataError(f"{where}: line {number} '{line[:60]}'", "expected a label, a space and a text")
        if label:
            rows.append((label.partition(":")[0], label, words.strip()))
    return Table(where, ("label", "fine-label", "text"), tuple(rows))


def _table(rows: object, where: str) -> Table:
    if not isinstance(rows, list) or not rows:
        raise DataError(where, "expected a list of rows")
    if isinstance(rows[0], Mapping):
        columns = tuple(map(str, rows[0]))
        return Table(where, columns, tuple(_cells(row, where, columns) for row in rows))
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    return Table(where, tuple(map(str, range(width))), tuple(_cells(row, where, ()) for row in rows))


def _cells(row: object, where: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    if columns and isinstance(row, Mapping) and set(row) == set(columns):
        cells = [row[column] for column in columns]
    elif not columns and isinstance(row, list):
        cells = row
    else:
        raise DataError(f"{where}: row {str(row)[:60]}", 'expected rows of one form, [text, label] or {"text": …}')
    if not all(isinstance(cell, (str, int, float)) for cell in cells):
        raise DataError(f"{where}: row {str(row)[:60]}", "expected cells of text or numbers")
    return tuple(str(cell).strip() for cell in cells)
