"""Rows of numbers and words, one class each: scikit-learn's small tables, or CSV files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedstill.common.data.classes import check_share, class_names, class_positions, set_aside
from fedstill.common.data.content import bare_name, check_encoding, find_files, told_as_data_errors
from fedstill.common.data.preparation import Columns
from fedstill.common.data.readers import TableFiles
from fedstill.common.data.scaling import standardise_rows
from fedstill.common.data.tables import Column, Table, joined, read_csv
from fedstill.common.errors import ConfigError, DataError, nearest
from fedstill.common.labels import Classes, label_space
from fedstill.common.metrics import accuracy, macro_f1
from fedstill.common.ranking_metrics import auc
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage

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

    def load_columns(self, folder: Path | None, columns: tuple[str, ...]) -> TaskData:
        """Read the rows in the columns of another table: a number as "age", a word of a column as "colour=red"."""
        return _load(self, folder, columns)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Fill gaps and standardise columns with the proxy set's means and deviations."""
        return standardise_rows(inputs, proxy)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """CSV files with the columns of the data set, or those of its features; arrays where the set is not at hand."""
        try:
            with told_as_data_errors(self.source):
                reader = _reader(self, folder)
        except DataError:
            # A site has the public samples of a pack, and need not have the data set that they were taken from.
            reader = None
        return Usage(Columns.of(proxy.numpy()), reader)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy, macro-F1 and the area under the ROC curve, the main one first."""
        found = {
            "accuracy": accuracy(logits, targets),
            "macro-f1": macro_f1(logits, targets),
            "auc": auc(logits, targets),
        }
        return {self.measured: found[self.measured], **found}


@lru_cache(maxsize=2)
def _load(task: TabularTask, folder: Path | None, wanted: tuple[str, ...] = ()) -> TaskData:
    with told_as_data_errors(task.source):
        if task.source in BUNDLED:
            pool, classes, columns = _bundled(task)
        else:
            tables, owners = _tables(task, folder, task.source)
            test_tables, _ = _tables(task, folder, task.test_source) if task.test_source else ([], ())
            table = joined([*tables, *test_tables])
            count = sum(len(part.rows) for part in tables)
            targets, classes = _targets(task, table)
            features = _wanted(task, table, wanted) if wanted else _features(task, table)
            columns, inputs = _inputs(task, table, features)
            everything = Examples(inputs, targets)
            pool = Examples(everything.inputs[:count], targets[:count], _owners(task, table, owners)[:count])
            if test_tables:
                return TaskData(pool, classes, everything.take(range(count, len(everything))), columns=columns)
    pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, classes, test, columns=columns)


def _bundled(task: TabularTask) -> tuple[Examples, Classes, tuple[str, ...]]:
    bunch = _bunch(task)
    rows, targets = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target.astype("int64"))
    classes = label_space(task.classes or map(str, bunch.target_names))
    return Examples(rows, targets), classes, tuple(map(str, bunch.feature_names))


def _bunch(task: TabularTask) -> Any:
    from sklearn.datasets import load_breast_cancer, load_wine

    return load_wine() if task.source == "wine" else load_breast_cancer()


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


@dataclass(frozen=True, slots=True)
class _Feature:
    """A column that is read as numbers or, word by word, as 0-1 columns.

    Attributes:
        place: of the column in its table.
        words: one input for each of them; None for a column of numbers.
    """

    place: int
    words: tuple[str, ...] | None = None


def _features(task: TabularTask, table: Table) -> list[_Feature]:
    """Every column that is neither the target, nor the owner, nor left out."""
    left_out = {table.number(column) for column in (task.target, *task.ignore)}
    if task.owner not in ("", "file"):
        left_out.add(table.number(task.owner))
    found = [
        _Feature(place, _words(task, table, place)) for place in range(len(table.columns)) if place not in left_out
    ]
    if all(feature.words == () for feature in found):
        raise DataError(f"{table.where}", "expected a column beside the target", "set the task's 'delimiter'")
    return found


def _words(task: TabularTask, table: Table, place: int) -> tuple[str, ...] | None:
    """The different words of a column; None for one of numbers."""
    cells = _cells(task, table, place)
    kinds = {table.number(column) for column in task.categorical}
    if place not in kinds and any(_is_number(cell) for cell in cells if cell):
        return None
    known = sorted({cell for cell in cells if cell})
    if len(known) > _MOST_WORDS:
        raise DataError(
            f"{table.where}: column '{table.columns[place]}' with {len(known)} different words",
            f"expected at most {_MOST_WORDS}",
            "name it in the task's 'ignore'",
        )
    return tuple(known)


def _wanted(task: TabularTask, table: Table, inputs: tuple[str, ...]) -> list[_Feature]:
    """The columns of another table's inputs; a word that this table does not have is 0 in every row."""
    found: list[_Feature] = []
    for name in inputs:
        column, word = _named(table, name)
        place = table.columns.index(column)
        if word is None:
            found.append(_Feature(place))
        elif found and found[-1].place == place and found[-1].words is not None:
            found[-1] = _Feature(place, (*found[-1].words, word))
        else:
            found.append(_Feature(place, (word,)))
    known: dict[int, set[str]] = {}
    for feature in found:
        known.setdefault(feature.place, set()).update(feature.words or ())
    for place, words in known.items():
        cells = [cell for cell in _cells(task, table, place) if cell]
        if words and cells and words.isdisjoint(cells):
            raise DataError(
                f"{table.where}: column '{table.columns[place]}' with '{cells[0]}'",
                f"expected the words of the public samples, such as '{min(words)}'",
                "write them alike, or name what stands for unknown in the task's 'missing'",
            )
    return found


def _named(table: Table, feature: str) -> tuple[str, str | None]:
    """The column that an input was made of, and its word if it is one of words."""
    if feature in table.columns:
        return feature, None
    owners = [column for column in table.columns if feature.startswith(f"{column}=")]
    if not owners:
        raise DataError(
            f"{table.where} without a column for '{feature}'",
            "expected the columns of the public samples",
            nearest(feature.partition("=")[0], table.columns),
        )
    column = max(owners, key=len)
    return column, feature.removeprefix(f"{column}=")


def _inputs(task: TabularTask, table: Table, features: list[_Feature]) -> tuple[tuple[str, ...], Tensor]:
    """Names of the inputs ("age", "colour=red"), and (N, inputs); a missing word is 0 in all of its column's."""
    found: list[tuple[str, Tensor]] = []
    for feature in features:
        name, cells = table.columns[feature.place], _cells(task, table, feature.place)
        if feature.words is None:
            numbers = [_number(table, row, feature.place, cell) if cell else math.nan for row, cell in enumerate(cells)]
            found.append((name, torch.tensor(numbers, dtype=torch.float64)))
            continue
        for word in feature.words:
            flags = torch.tensor([cell == word for cell in cells], dtype=torch.float64)
            found.append((f"{name}={word}", flags))
    return tuple(name for name, _ in found), torch.stack([values for _, values in found], 1)


def _reader(task: TabularTask, folder: Path | None) -> TableFiles:
    if task.source in BUNDLED:
        names = tuple(map(str, _bunch(task).feature_names))
        return TableFiles(names, tuple(range(len(names))), (None,) * len(names), len(names))
    sources = [source for source in (task.source, task.test_source) if source]
    table = joined([one for source in sources for one in _tables(task, folder, source)[0]])
    features = _features(task, table)
    return TableFiles(
        tuple(table.columns[feature.place] for feature in features),
        tuple(feature.place for feature in features),
        tuple(feature.words for feature in features),
        len(table.columns),
        header=task.header,
        delimiter=task.delimiter,
        encoding=task.encoding,
        comment=task.comment,
        missing=task.missing,
    )


def _cells(task: TabularTask, table: Table, place: int) -> list[str]:
    """The cells of a column, "" for a missing one."""
    return ["" if _is_missing(task, row[place]) else row[place] for row in table.rows]


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
