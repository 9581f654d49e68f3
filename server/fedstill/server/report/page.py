"""The report's page: gathers numbers and plots, and fills the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common.files import write_atomically
from fedstill.common.scenario import to_toml
from fedstill.server import wording
from fedstill.server.folder import RunFolder
from fedstill.server.report import plots, series
from fedstill.server.report.template import need_plots, render
from fedstill.server.summary import (
    ClientResult,
    Record,
    Summary,
    TaskResult,
    of_kind,
    rejections,
    summarise,
)

LISTED = 100
"""So many rejections are listed one by one."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure.

    Attributes:
        name: what it is.
        value: the number, said.
        note: what to compare it with.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A client's line in a task's table.

    Attributes:
        client: its results.
        low, high: ends of its bar, in per cent of the bar's track; None where a value is missing.
    """

    client: ClientResult
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class TaskSection:
    """Everything that the page says of one task.

    Attributes:
        task: the results.
        rows: the table.
        scale: what the two ends of the bars' track mean.
        progress, cost: plots; "" where there is nothing to show.
        by_class: heat maps as (caption, plot).
        unknown: some clients do not know all classes.
    """

    task: TaskResult
    rows: Sequence[Row]
    scale: tuple[str, str]
    progress: str
    cost: str
    by_class: Sequence[tuple[str, str]]
    unknown: bool


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run, finished or under way, beside its records.

    Returns:
        Where it lies.

    Raises:
        UnsupportedError: if jinja2 or matplotlib is not installed.
        RunFolderError: if the folder is none of a run.
        StorageError: if the disk refuses.
    """
    write_atomically(folder.report, page(folder.name, folder.config(), folder.records()).encode())
    return folder.report


def page(run: str, config: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The report as HTML.

    Args:
        run: the run's name.
        config: the tables of config.toml.
        records: the committed steps, oldest first.

    Raises:
        UnsupportedError: if jinja2 or matplotlib is not installed.
    """
    need_plots()
    found = summarise(run, config, records)
    rounds = of_kind(records, "round")
    who = series.participation(config, records)
    return render(
        "fedstill.server.report",
        "page.html",
        summary=found,
        verdict=wording.verdict(found),
        figures=_figures(found),
        sections=[_section(place, task, records, found) for place, task in enumerate(found.tasks)],
        who=who,
        participation="" if who.smooth or not rounds else plots.participation_plot(who, name="who"),
        time=plots.time_plot(rounds, name="time") if rounds else "",
        alone_seconds=sum(record["seconds"] for record in of_kind(records, "alone")),
        rejected=_rejected(records)[:LISTED],
        restarted=[(record["step"], record["restarted"]) for record in records if record.get("restarted")],
        toml=to_toml(dict(config.get("scenario", {}))),
        software=_software(config),
    )


def _figures(summary: Summary) -> list[Figure]:
    found = [figure for task in summary.tasks for figure in _task_figures(task, several=len(summary.tasks) > 1)]
    if summary.exchanges and summary.rounds:
        up, down = wording.size(summary.round_up), wording.size(summary.round_down)
        found.append(Figure("Per client and round", f"{up} up", f"{down} down"))
    if summary.saving is not None:
        each = wording.size(summary.round_fedavg)
        found.append(Figure("The same with FedAvg", f"{each} up", f"{each} down: float32 weights of each model"))
    total = wording.size(summary.up + summary.down)
    found.append(
        Figure("Traffic of the run", total, f"{wording.size(summary.up)} up, {wording.size(summary.down)} down")
    )
    number = str(summary.rounds) if summary.finished else f"{summary.rounds} of {summary.planned}"
    failures = {"answer rejected": sum(summary.rejections.values()), "attempt given up": summary.abandoned}
    said = [wording.count(number, what) for what, number in failures.items() if number]
    note = ", ".join(said) or ("every answer counted" if summary.rounds else "")
    time = wording.duration(summary.seconds)
    return [*found, Figure("Rounds", f"{number} in {time}", note)]


def _task_figures(task: TaskResult, *, several: bool) -> list[Figure]:
    name = wording.measure_name(task.measure) + (f", {task.name}" if several else "")
    found = []
    if task.after is not None:
        change = f"{wording.gain(task.gain, share=task.share)}{' points' if task.share else ''}"
        alone = wording.score(task.alone, share=task.share)
        note = f"{alone} alone, {change}" if task.gain is not None else "mean of the clients"
        found.append(Figure(f"Mean {name}", wording.score(task.after, share=task.share), note))
    if task.teacher is not None:
        found.append(
            Figure(f"Server's model, {name}", wording.score(task.teacher, share=task.share), "common test set")
        )
    elif task.consensus is not None:
        found.append(Figure(f"Consensus, {name}", wording.score(task.consensus, share=task.share), "proxy samples"))
    return found


def _section(place: int, task: TaskResult, records: Sequence[Record], summary: Summary) -> TaskSection:
    curves = series.progress(records, task)
    rates = series.class_rates(records, task)
    rows, scale = _rows(task)
    cost = series.cost(records, curves, summary)
    later = "After private training"
    if summary.finished:
        later = "With shared knowledge" if curves.together else "After the run"
    stages = [("Alone", rates.alone), (later, rates.after)]
    measure = wording.measure_name(task.measure)
    return TaskSection(
        task=task,
        rows=rows,
        scale=scale,
        progress=plots.progress_plot(curves, task, name=f"progress{place}") if curves.main or curves.teacher else "",
        cost=plots.cost_plot(cost, task, name=f"cost{place}") if cost.bytes and summary.exchanges else "",
        by_class=[
            (title, plots.class_plot(rates, values, name=f"class{place}{number}", label=f"{title}: {measure} by class"))
            for number, (title, values) in enumerate(stages)
            if values
        ],
        unknown=not all(all(row) for row in rates.known),
    )


def _rows(task: TaskResult) -> tuple[list[Row], tuple[str, str]]:
    """The bars' track reaches over everything for shares, else from the lowest to the highest value."""
    values = [value for client in task.clients for value in (client.alone, client.after) if value is not None]
    low, high = (0.0, 1.0) if task.share or not values else (min(values), max(values))

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / ((high - low) or 1), 2)

    ends = (
        ("0\u00a0%", "100\u00a0%")
        if task.share
        else (wording.score(low, share=False), wording.score(high, share=False))
    )
    return [Row(client, place(client.alone), place(client.after)) for client in task.clients], ends


def _rejected(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [{"step": _step(record), **rejection} for record in records for rejection in rejections(record)]


def _step(record: Record) -> str:
    return str(record["step"]) if record["kind"] == "round" else str(record["kind"])


def _software(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions: dict[str, list[str]] = {}
    for client, tasks in config.get("roster", {}).items():
        for version in dict.fromkeys(str(task.get("software", "")) for task in tasks.values()):
            versions.setdefault(version, []).append(client)
    found = [("server", f"fedstill {config.get('fedstill', '')}")]
    for version, clients in versions.items():
        found.append((f"{len(clients)} clients" if len(clients) > 1 else clients[0], f"fedstill {version}"))
    return found
