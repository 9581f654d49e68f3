"""A run in lines of text, one a step: for logs, and for the command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fedstill.server.summary import main_measure, mean, number, rejections
from fedstill.server.wording import duration, score, size

log = logging.getLogger(__name__)


class Lines:
    """Logs a line for every committed step, and one for everything that went wrong in it."""

    def __init__(self, *, last: int) -> None:
        """Begin.

        Args:
            last: number of the last step.
        """
        self._last = last

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Log a step."""
        log.info("%s", step_line(record, self._last))
        for note in step_notes(record):
            log.warning("%s", note)

    def close(self) -> None:
        """Nothing is left."""


def step_title(kind: str, step: int, last: int) -> str:
    """The name of a step: "round 3/8"."""
    return f"round {step}/{last - 1}" if kind == "round" else kind


def step_line(record: Mapping[str, Any], last: int) -> str:
    """A committed step in one line.

    Args:
        record: as `StepRecord.table()` makes it.
        last: number of the last step.
    """
    parts = [step_title(record["kind"], record["step"], last)]
    parts += [_scores(record, task, several=len(record["tasks"]) > 1) for task in record["tasks"]]
    asked = len(record["cohort"])
    if record["kind"] == "round" and asked:
        up, down = record["bytes"]["up"] / asked, record["bytes"]["down"] / asked
        parts.append(f"↑ {size(up)} ↓ {size(down)} a client")
    if asked:
        parts.append(f"{len(record['accepted'])} of {asked} clients")
    parts.append(duration(record["seconds"]))
    return "  ".join(part for part in parts if part)


def step_notes(record: Mapping[str, Any]) -> list[str]:
    """What went wrong in a step."""
    notes = [f"{one['client']} did not count: {one['reason']}: {one['detail']}" for one in rejections(record)]
    if record["abandoned"]:
        notes.append(f"{len(record['abandoned'])} attempts before this one were abandoned: too few answers")
    if record["restarted"]:
        notes.append(f"began with another student than expected: {', '.join(record['restarted'])}")
    return notes


def _scores(record: Mapping[str, Any], task: str, *, several: bool) -> str:
    part = record["tasks"][task]
    measure = main_measure([record], task)
    stages = [
        key.removesuffix(f".{measure}")
        for measures in part["clients"].values()
        for key in measures
        if key.endswith(f".{measure}")
    ]
    found = []
    if stages:
        values = [number(measures.get(f"{stages[-1]}.{measure}")) for measures in part["clients"].values()]
        found.append(f"clients {_value(mean(values))}")
    for label, key in (("teacher", measure), ("consensus", f"consensus.{measure}")):
        if key in part["server"]:
            found.append(f"{label} {_value(number(part['server'][key]))}")
    return (f"{task}: " if several and found else "") + "  ".join(found)


def _value(value: float | None) -> str:
    return score(value, share=value is None or 0 <= value <= 1)
