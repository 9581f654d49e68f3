"""How a run shows itself on the command line: one line a round while it goes on, one table at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedstill.server.rounds import Pulse
from fedstill.server.summary import Summary, TaskResult, main_measure, mean, number, rejections
from fedstill.server.wording import duration, gain, magnitude, measure_name, score, size, verdict


class Progress:
    """A tracker that shows every step: a live line where there is a terminal, plain lines where there is none."""

    def __init__(self, console: Console, *, steps: int) -> None:
        """Begin.

        Args:
            console: where to write.
            steps: number of the last step.
        """
        self._console = console
        self._steps = steps
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        if self._live:
            self._live.start()

    def pulse(self, pulse: Pulse) -> None:
        """Show how far a step is; only a terminal shows it."""
        if self._live:
            again = f", attempt {pulse.attempt}" if pulse.attempt > 1 else ""
            title = _title(pulse.kind, pulse.step, self._steps)
            self._live.update(
                Text(f"{title}  {pulse.answered} of {pulse.asked} clients{again} …", style="dim"), refresh=True
            )

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Show a committed step."""
        if self._live:
            self._live.update(Text(), refresh=True)
        self._console.print(step_line(record, self._steps), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        if self._live:
            self._live.stop()


def step_line(record: Mapping[str, Any], steps: int) -> Text:
    """A committed step in one line."""
    parts = [_title(record["kind"], record["step"], steps)]
    parts += [_scores(record, task, several=len(record["tasks"]) > 1) for task in record["tasks"]]
    asked = len(record["cohort"])
    if record["kind"] == "round" and asked:
        up, down = record["bytes"]["up"] / asked, record["bytes"]["down"] / asked
        parts.append(f"↑ {size(up)} ↓ {size(down)} a client")
    if asked:
        parts.append(f"{len(record['accepted'])} of {asked} clients")
    parts.append(duration(record["seconds"]))
    line = Text("  ".join(part for part in parts if part))
    for rejection in rejections(record):
        line.append(
            f"\n    {rejection['client']} did not count: {rejection['reason']}: {rejection['detail']}", "yellow"
        )
    if record["abandoned"]:
        line.append(f"\n    {len(record['abandoned'])} attempts before were abandoned: too few answers", "yellow")
    if record["restarted"]:
        line.append(f"\n    began with a new student: {', '.join(record['restarted'])}", "yellow")
    return line


def final_table(summary: Summary, task: TaskResult) -> Table:
    """What each client got out of a task and what it cost."""
    name = measure_name(task.measure)
    table = Table(title=f"{task.name}: {name}", title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("client")
    table.add_column("model")
    for heading in ("parameters", "examples", "alone", "after", "gain", "↑ a round", "↓ a round", "FedAvg ↑ or ↓"):
        table.add_column(heading, justify="right")
    traffic = {client.name: client for client in summary.traffic}
    for client in task.clients:
        bytes_of = traffic[client.name]
        better = client.gain is not None and client.gain > 0
        table.add_row(
            client.name,
            client.model,
            magnitude(client.parameters),
            str(client.examples),
            score(client.alone, share=task.share),
            score(client.after, share=task.share),
            Text(gain(client.gain, share=task.share), style="green" if better else ""),
            size(bytes_of.up),
            size(bytes_of.down),
            size(bytes_of.fedavg),
        )
    table.add_section()
    table.add_row(
        "mean",
        "",
        "",
        "",
        score(task.alone, share=task.share),
        score(task.after, share=task.share),
        gain(task.gain, share=task.share),
        size(summary.round_up),
        size(summary.round_down),
        size(summary.round_fedavg),
        style="bold",
    )
    if task.teacher is not None:
        table.add_row("teacher", "", "", "", "", score(task.teacher, share=task.share), style="bold")
    return table


def show(console: Console, summary: Summary) -> None:
    """The tables and the verdict."""
    for task in summary.tasks:
        if task.clients:
            console.print(final_table(summary, task))
    console.print(verdict(summary), highlight=False)
    console.print(f"{duration(summary.seconds)} in all.", highlight=False)


def _title(kind: str, step: int, steps: int) -> str:
    return f"round {step}/{steps - 1}" if kind == "round" else {"alone": "alone", "finish": "finish"}[kind]


def _scores(record: Mapping[str, Any], task: str, *, several: bool) -> str:
    part = record["tasks"][task]
    measure = main_measure([record], task)
    stages = [
        key.removesuffix(f".{measure}")
        for one in part["clients"].values()
        for key in one
        if key.endswith(f".{measure}")
    ]
    found = []
    if stages:
        values = [number(one.get(f"{stages[-1]}.{measure}")) for one in part["clients"].values()]
        found.append(f"clients {_value(mean(values))}")
    for label, key in (("teacher", measure), ("consensus", f"consensus.{measure}")):
        if key in part["server"]:
            found.append(f"{label} {_value(number(part['server'][key]))}")
    return (f"{task}: " if several and found else "") + "  ".join(found)


def _value(value: float | None) -> str:
    return score(value, share=value is None or 0 <= value <= 1)
