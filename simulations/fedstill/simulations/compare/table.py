"""The table of a comparison as people and programs read it: terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedstill.server.wording import NONE, count, measure_name, score, size
from fedstill.simulations.compare.comparison import Comparison, Row, Stat
from fedstill.simulations.compare.figures import TARGET


@dataclass(frozen=True, slots=True)
class Column:
    """A column of values.

    Attributes:
        key: attribute of `Row`, and name in CSV.
        heading: for people.
        say: a value and its row, in words.
    """

    key: str
    heading: str
    say: Callable[[Stat, Row], str]


def _score(value: Stat, row: Row) -> str:
    if not row.share:
        return _spread(value, lambda number: score(number, share=False))
    return _spread(value, lambda number: f"{100 * number:.1f}").replace("-", "−")


def _size(value: Stat, _: Row) -> str:
    return size(value.mean)


def _steps(value: Stat, _: Row) -> str:
    return f"{value.mean:,.0f}"


def _seconds(value: Stat, _: Row) -> str:
    return _spread(value, lambda number: f"{number:.{1 if value.mean >= 1 else 2}f}")


def _spread(value: Stat, say: Callable[[float], str]) -> str:
    return say(value.mean) + (f" ± {say(value.spread)}" if value.spread is not None else "")


COLUMNS = (
    Column("clients", "clients", _score),
    Column("worst", "worst client", _score),
    Column("teacher", "teacher", _score),
    Column("worst_class", "worst class", _score),
    Column("gain", "gain", _score),
    Column("up", "bytes up", _size),
    Column("down", "bytes down", _size),
    Column("to_target", f"bytes to {100 * TARGET:.0f} %", _size),
    Column("seconds", "seconds", _seconds),
    Column("private", "private steps", _steps),
    Column("further", "further steps", _steps),
    Column("server", "server steps", _steps),
)


def columns(found: Comparison) -> list[Column]:
    """Those of which at least one row has a value."""
    return [column for column in COLUMNS if any(getattr(row, column.key) is not None for row in found.rows)]


def cell(row: Row, column: Column) -> str:
    """A value, said; a mean over fewer seeds than the row has runs says so."""
    value: Stat | None = getattr(row, column.key)
    if value is None:
        return NONE
    fewer = f" ({value.seeds} of {row.runs})" if value.seeds < row.runs else ""
    return column.say(value, row) + fewer


def subject(row: Row, *, several: bool) -> str:
    """What a row is about."""
    return f"{row.subject}, {row.task}" if several else row.subject


def notes(found: Comparison) -> list[str]:
    """What has to be known to read the table, and what is not in it."""
    seeds = ", ".join(map(str, found.plan.seeds))
    spread = "mean ± standard deviation over seeds" if len(found.plan.seeds) > 1 else "one seed, so no spread"
    said = [
        f"{spread} {seeds}. Shares in per cent, gains in points over the same model trained alone. Bytes: all clients, "
        f"the whole run; to {100 * TARGET:.0f} %: up and down, until the clients' mean was at that share of the "
        "method's own last value.",
        "Equal for every method of a scenario and seed: split, proxy set, architectures, first students (methods that "
        "send weights begin with the server's), private steps (of all clients). Not equal: further steps of clients "
        "(distillation on the proxy set, say) and steps of the server, which follow from a method's options.",
    ]
    if found.rows and all(row.worst_class is None for row in found.rows):
        said.append("No worst class: no task here is measured by class.")
    said += [f"NOT EQUAL: {what}." for what in found.unequal]
    said += [f"not applicable: {one.method} on {one.subject}: {one.reason}" for one in found.unfit]
    if found.failed:
        said.append(f"{count(len(found.failed), 'run')} failed:")
        said += [f"  {one.cell.subject}, {one.cell.method}, seed {one.cell.seed}: {one.reason}" for one in found.failed]
    return said


def show(console: Console, found: Comparison) -> None:
    """The table on a terminal."""
    table = Table(
        title="Methods compared", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("scenario", "method", "runs"):
        table.add_column(heading, justify="right" if heading == "runs" else "left")
    told = columns(found)
    for column in told:
        table.add_column(column.heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    before = ""
    for row in found.rows:
        about = f"{subject(row, several=found.several)}: {measure_name(row.measure)}"
        if before and about != before:
            table.add_section()
        table.add_row(about if about != before else "", row.method, str(row.runs), *(cell(row, one) for one in told))
        before = about
    if found.rows:
        console.print(table)
    for note in notes(found):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if found.ranks:
        ranked = ", ".join(f"{name} {rank:.2f}" for name, rank in found.ranks.mean.items())
        console.print(f"Mean ranks over {count(found.ranks.sets, 'task')}: {ranked}.", highlight=False)


def _head(row: Row) -> tuple[str, str, str]:
    return measure_name(row.measure), row.method, str(row.runs)


def markdown(found: Comparison) -> str:
    """The table as Markdown, with its notes."""
    told = columns(found)
    headings = ["scenario", "measure", "method", "runs", *(column.heading for column in told)]
    lines = [f"| {' | '.join(headings)} |", f"|---|---|---|{'---:|' * (len(headings) - 3)}"]
    lines += [
        f"| {' | '.join([subject(row, several=found.several), *_head(row), *(cell(row, one) for one in told)])} |"
        for row in found.rows
    ]
    return "\n".join(["# Methods compared", "", *(lines if found.rows else []), "", *_listed(notes(found)), ""])


def _listed(texts: Sequence[str]) -> list[str]:
    return [f"  - {text.strip()}" if text.startswith(" ") else f"- {text}" for text in texts]


def comma_separated(found: Comparison) -> str:
    """The table as CSV: every value with its spread and its number of seeds, as plain numbers."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    values = [name for column in COLUMNS for name in (column.key, f"{column.key}_spread", f"{column.key}_seeds")]
    writer.writerow(["scenario", "task", "measure", "method", "runs", *values])
    for row in found.rows:
        told: list[object] = [row.subject, row.task, row.measure, row.method, row.runs]
        for column in COLUMNS:
            value: Stat | None = getattr(row, column.key)
            told += ["", "", ""] if value is None else [value.mean, _blank(value.spread), value.seeds]
        writer.writerow(told)
    return stream.getvalue()


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
