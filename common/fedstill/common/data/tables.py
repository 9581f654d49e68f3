"""Tables of text cells from CSV files: columns by name or number, rows of one length."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.data.content import read_text
from fedstill.common.errors import DataError, nearest

Column = str | int
"""A column by its name, or by its number from 0; a negative number counts from the end."""

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text.

    Attributes:
        where: the file, for messages.
        columns: their names; "0", "1", … in a file without a header.
        rows: (N,) of one cell for each column.
    """

    where: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.where}", "expected at least one row")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise DataError(
                    f"{self.where}: row {number + 1} of {len(row)} cells",
                    f"expected {len(self.columns)}",
                    "mend the row, or set the task's 'delimiter'",
                )

    def number(self, column: Column) -> int:
        """Where a column stands.

        Raises:
            DataError: if there is none of that name or number.
        """
        if isinstance(column, str) and column in self.columns:
            return self.columns.index(column)
        if isinstance(column, int) and -len(self.columns) <= column < len(self.columns):
            return column % len(self.columns)
        raise DataError(
            f"{self.where}: column '{column}'", "expected a column of the file", nearest(str(column), self.columns)
        )

    def cells(self, column: Column) -> list[str]:
        """The cells of one column."""
        place = self.number(column)
        return [row[place] for row in self.rows]

    def numbers(self, column: Column, *, lowest: float, highest: float) -> list[float]:
        """The cells of a column as numbers of a scale.

        Raises:
            DataError: if one is no number, or off the scale.
        """
        found = []
        for row, cell in enumerate(self.cells(column)):
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not lowest <= value <= highest:
                raise DataError(
                    f"{self.where}: '{cell}' in row {row + 1}, column '{self.columns[self.number(column)]}'",
                    f"expected a number from {lowest:g} to {highest:g}",
                    "mend the row, or set the ends of the scale in the task",
                )
            found.append(value)
        return found


def parse_csv(
    text: str, where: str, *, header: bool | Collection[str], delimiter: str = ",", comment: str = ""
) -> Table:
    """A table from CSV text; blank lines count nothing, and spaces around a cell are left out.

    Args:
        text: all of it.
        where: the file, for messages.
        header: whether the first row names the columns; or names, and it does if it holds one in any case.
        delimiter: between cells.
        comment: rows that begin with it are left out; "" if there are none.

    Raises:
        DataError: if it is no CSV, has no row, or its rows differ in length.
    """
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = [tuple(cell.strip() for cell in row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{where}", f"is no CSV: {error}", "mend the line") from None
    if comment:
        rows = [row for row in rows if not row[0].startswith(comment)]
    if not rows:
        raise DataError(f"{where}", "expected at least one row")
    if not isinstance(header, bool):
        header = any(cell.lower() in header for cell in rows[0])
    names = rows.pop(0) if header else tuple(map(str, range(len(rows[0]))))
    if len(set(names)) != len(names):
        raise DataError(f"{where}: header {', '.join(names)}", "expected every column once", "or set header = false")
    return Table(where, names, tuple(rows))


def read_csv(path: Path, *, header: bool, delimiter: str = ",", encoding: str = "utf-8", comment: str = "") -> Table:
    """A table from a CSV file (packed or not).

    Raises:
        DataError: if the file is missing, damaged or no CSV.
    """
    text = read_text(path, encoding=encoding)
    return parse_csv(text, str(path), header=header, delimiter=delimiter, comment=comment)


def joined(tables: Sequence[Table]) -> Table:
    """Tables with the same columns, one below the other.

    Raises:
        DataError: if the columns differ.
    """
    first = tables[0]
    for table in tables[1:]:
        if table.columns != first.columns:
            raise DataError(
                f"{table.where}: columns {', '.join(table.columns)}",
                f"expected those of {first.where}",
                "mend the header",
            )
    where = first.where if len(tables) == 1 else f"{first.where} and {len(tables) - 1} more"
    return Table(where, first.columns, tuple(row for table in tables for row in table.rows))
