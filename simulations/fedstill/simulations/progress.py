"""How a run shows itself on the command line: one line a round while it goes on, one table at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedstill.server.rounds import Pulse
from fedstill.server.summary import Summary, TaskResult
from fedstill.server.trackers.lines import step_line, step_notes, step_title
from fedstill.server.wording import duration, gain, magnitude, measure_name, score, size, verdict


class Progress:
    """A tracker that shows every step: a live line where there is a terminal, plain lines where there is none."""

    def __init__(self, console: Console, *, last: int) -> None:
        """Begin.

        Args:
            console: where to write.
            last: number of the last step.
        """
        self._console = console
        self._last = last
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        if self._live:
            self._live.start()

    def pulse(self, pulse: Pulse) -> None:
        """Show how far a step is; only a terminal shows it."""
        if self._live:
            again = f", attempt {pulse.attempt}" if pulse.attempt > 1 else ""
            title = step_title(pulse.kind, pulse.step, self._last)
            self._live.update(
                Text(f"{title}  {pulse.answered} of {pulse.asked} clients{again} …", style="dim"), refresh=True
            )

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Show a committed step."""
        if self._live:
            self._live.update(Text(), refresh=True)
        line = Text(step_line(record, self._last))
        for note in step_notes(record):
            line.append(f"\n    {note}", "yellow")
        self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        if self._live:
            self._live.stop()


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
