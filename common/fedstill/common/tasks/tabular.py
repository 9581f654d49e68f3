"""Rows of numbers and words, one class each: scikit-learn's small tables, or CSV files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedstill.common.data.classes import check_share, class_names, class_positions, set_aside
from fedstill.common.data.content import bare_name, check_encoding, find_files, told_as_data_errors
from fedstill.common.data.scaling import standardise_rows
from fedstill.common.data.tables import Column, Table, joined, read_csv
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes, label_space
from fedstill.common.metrics import accuracy, macro_f1
from fedstill.common.ranking_metrics import auc
from fedstill.common.task import Examples, TaskData

SUFFIXES = (".csv", ".tsv", ".data")
BUNDLED = ("breast-cancer", "wine")

_MOST_WORDS = 100
"""Different words of one column; more are names or free text, and no feature."""


@dataclass(frozen=True, slots=True)
class TabularTask:
    """Tell the class of a row of a table.

    A column is named by its name or by its number from 0 (-1 is the last). Columns of numbers are features as they are,
    columns of words become one feature for each word.

    Attributes:
        source: "breast-cancer" or "wine" (scikit-learn's, nothing to download); a CSV file, a pattern, or a folder.
        test_source: file, pattern or folder of the test part; "" if there is none.
        header: whether the first row names the columns.
        delimiter, encoding: of the files.
        comment: rows that begin with it are left out; "" if there are none.
        target: the column to predict.
        label_end: taken off the end of a label, as the full stop in Adult's test part; "" for nothing.
        positive_above: the target is a number, and the question is whether it is above this one.
        classes: names of the classes in the order of their labels; () for the target's own words.
        missing: what stands for an unknown value, beside an empty cell.
        owner: whom a row belongs to: "file", or a column, which is then no feature; "" if nobody knows.
        ignore: columns that are no features.
        categorical: columns of numbers that stand for kinds, to be read as words.
        test_share: share set aside to measure with, where there is no test part.
        measured: the main measure, "accuracy" or "auc"; the other one is shown beside it.
    """

    name: ClassVar[str] = "tabular"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "tabular"

    source: str = "breast-cancer"
    test_source: str = ""
    header: bool = True
    delimiter: str = ","
    encoding: str = "utf-8"
    comment: str = ""
    target: Column = -1
    label_end: str = ""
    positive_above: float | None = None
    classes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("?", "NA", "NaN", "nan")
    owner: Column = ""
    ignore: tuple[Column, ...] = ()
    categorical: tuple[Column, ...] = ()
    test_share: float = 0.2
    measured: Literal["accuracy", "auc"] = "accuracy"

    def __post_init__(self) -> None:
        check_share(self.test_share)
        check_encoding(self.encoding)
        if len(self.delimiter) != 1:
            raise ConfigError(f"delimiter={self.delimiter!r}", "expected one character", "such as ',' or ';'")
        if self.positive_above is not None and len(self.classes) not in (0, 2):
            raise ConfigError(f"{len(self.classes)} classes with positive-above", "expected two", "such as no and yes")

    def load(self, folder: Path | None) -> TaskData:
        """Read the rows as float64 (N, features), NaN for what is missing; kept for the next call in this process."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Fill gaps and standardise columns with the proxy set's means and deviations."""
        return standardise_rows(inputs, proxy)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy, macro-F1 and the area under the ROC curve, the main one first."""
        found = {
            "accuracy": accuracy(logits, targets),
            "macro-f1": macro_f1(logits, targets),
            "auc": auc(logits, targets),
        }
        return {self.measured: found[self.measured], **found}


@lru_cache(maxsize=2)
def _load(task: TabularTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        if task.source in BUNDLED:
            pool, classes = _bundled(task)
        else:
            tables, owners = _tables(task, folder, task.source)
            test_tables, _ = _tables(task, folder, task.test_source) if task.test_source else ([], ())
            table = joined([*tables, *test_tables])
            count = sum(len(part.rows) for part in tables)
            targets, classes = _targets(task, table)
            everything = Examples(_features(task, table), targets)
            pool = Examples(everything.inputs[:count], targets[:count], _owners(task, table, owners)[:count])
            if test_tables:
                return TaskData(pool, classes, everything.take(range(count, len(everything))))
    pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, classes, test)


def _bundled(task: TabularTask) -> tuple[Examples, Classes]:
    from sklearn.datasets import load_breast_cancer, load_wine

    bunch = load_wine() if task.source == "wine" else load_breast_cancer()
    rows, targets = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target.astype("int64"))
    return Examples(rows, targets), label_space(task.classes or map(str, bunch.target_names))


def _tables(task: TabularTask, folder: Path | None, source: str) -> tuple[list[Table], tuple[str, ...]]:
    """The files of a source, and the name of each row's file."""
    paths = find_files(folder, source, SUFFIXES)
    tables = [
        read_csv(path, header=task.header, delimiter=task.delimiter, encoding=task.encoding, comment=task.comment)
        for path in paths
    ]
    names = [bare_name(path).rpartition(".")[0] or path.name for path in paths]
    return tables, tuple(name for name, table in zip(names, tables, strict=True) for _ in table.rows)


def _owners(task: TabularTask, table: Table, files: tuple[str, ...]) -> tuple[str, ...]:
    if task.owner == "":
        return ()
    return files if task.owner == "file" else tuple(cell or "unknown" for cell in table.cells(task.owner))


def _targets(task: TabularTask, table: Table) -> tuple[Tensor, Classes]:
    cells = [cell.removesuffix(task.label_end) for cell in table.cells(task.target)]
    for row, cell in enumerate(cells):
        if _is_missing(task, cell):
            raise DataError(f"{table.where}: row {row + 1} without a label", "expected a label", "remove the row")
    if task.positive_above is None:
        classes = label_space(task.classes or class_names(cells))
        return class_positions(cells, classes, table.where), classes
    numbers = [_number(table, row, task.target, cell) for row, cell in enumerate(cells)]
    return torch.tensor([int(number > task.positive_above) for number in numbers]), task.classes or ("no", "yes")


def _features(task: TabularTask, table: Table) -> Tensor:
    left_out = {table.number(column) for column in (task.target, *task.ignore)}
    if task.owner not in ("", "file"):
        left_out.add(table.number(task.owner))
    kinds = {table.number(column) for column in task.categorical}
    columns: list[Tensor] = []
    for place in range(len(table.columns)):
        if place not in left_out:
            columns += _encoded(task, table, place, words=place in kinds)
    if not columns:
        raise DataError(f"{table.where}", "expected a column beside the target", "set the task's 'delimiter'")
    return torch.stack(columns, 1)


def _encoded(task: TabularTask, table: Table, place: int, *, words: bool) -> list[Tensor]:
    """A column of numbers as it is, or one 0-1 column for each word; a missing word is 0 in all of them."""
    cells = ["" if _is_missing(task, row[place]) else row[place] for row in table.rows]
    if not words and any(_is_number(cell) for cell in cells if cell):
        numbers = [_number(table, row, place, cell) if cell else math.nan for row, cell in enumerate(cells)]
        return [torch.tensor(numbers, dtype=torch.float64)]
    known = sorted({cell for cell in cells if cell})
    if len(known) > _MOST_WORDS:
        raise DataError(
            f"{table.where}: column '{table.columns[place]}' with {len(known)} different words",
            f"expected at most {_MOST_WORDS}",
            "name it in the task's 'ignore'",
        )
    return [torch.tensor([cell == word for cell in cells], dtype=torch.float64) for word in known]


def _is_missing(task: TabularTask, cell: str) -> bool:
    return not cell or cell in task.missing


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _number(table: Table, row: int, column: Column, cell: str) -> float:
    if not _is_number(cell):
        raise DataError(
            f"{table.where}: '{cell}' in row {row + 1}, column '{table.columns[table.number(column)]}'",
            "expected a finite number as in other rows",
            "mend it, name it in the task's 'missing', or the column in its 'categorical'",
        )
    return float(cell)
