"""One committed step as the world sees it: a line of rounds.jsonl.

    kind       "alone" (step 0), "round", "finish"
    cohort     who was asked; `accepted` who counted; `rejected` who did not, why
    abandoned  earlier attempts at this step that stayed below quorum
    bytes      up and down: total, and of each client
    tasks      name → {"server": measures, "clients": {client: measures}}

A measure that is no finite number is null.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedstill.common.messages import Answer, Metrics
from fedstill.server.admission import Rejection


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes on the wire in one step.

    Attributes:
        up, down: by client.
    """

    up: Mapping[str, int]
    down: Mapping[str, int]

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "up": sum(self.up.values()),
            "down": sum(self.down.values()),
            "clients": {name: {"up": self.up.get(name, 0), "down": self.down[name]} for name in self.down},
        }


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a step.

    Attributes:
        number: from 1.
        cohort: who was asked.
        accepted: whose answers counted.
        rejected: whose did not.
    """

    number: int
    cohort: Sequence[str]
    accepted: Sequence[str]
    rejected: Sequence[Rejection]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A committed step.

    Attributes:
        kind: "alone", "round" or "finish".
        step: its number.
        attempt: the one that counted.
        abandoned: the ones before.
        traffic: bytes, all attempts together.
        seconds: from the first message to the commit.
        server: measures of the shared teacher or the global model, by task.
        clients: measures by task and client.
        restarted: clients that had lost their student and began anew.
    """

    kind: str
    step: int
    attempt: Attempt
    abandoned: Sequence[Attempt]
    traffic: Traffic
    seconds: float
    server: Mapping[str, Metrics]
    clients: Mapping[str, Mapping[str, Metrics]]
    restarted: Sequence[str] = field(default=())

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "step": self.step,
            "attempt": self.attempt.number,
            "cohort": list(self.attempt.cohort),
            "accepted": list(self.attempt.accepted),
            "rejected": [asdict(rejection) for rejection in self.attempt.rejected],
            "abandoned": [
                {
                    "attempt": attempt.number,
                    "cohort": list(attempt.cohort),
                    "accepted": list(attempt.accepted),
                    "rejected": [asdict(rejection) for rejection in attempt.rejected],
                }
                for attempt in self.abandoned
            ],
            "restarted": list(self.restarted),
            "bytes": self.traffic.table(),
            "seconds": round(self.seconds, 3),
            "tasks": {
                name: {"server": dict(self.server.get(name, {})), "clients": dict(self.clients.get(name, {}))}
                for name in sorted({*self.server, *self.clients})
            },
        }


def to_line(table: Mapping[str, Any]) -> str:
    """One line of ASCII JSON, whatever the texts hold; NaN, which JSON has not, becomes null."""
    return json.dumps(_no_nan(table), separators=(",", ":"), allow_nan=False)


def _no_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return value


def total(parts: Sequence[Traffic]) -> Traffic:
    """The traffic of several attempts."""
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    for part in parts:
        up.update(part.up)
        down.update(part.down)
    return Traffic(dict(up), dict(down))


def client_measures(answers: Mapping[str, Answer]) -> dict[str, dict[str, Metrics]]:
    """What clients measured, by task and client."""
    found: dict[str, dict[str, Metrics]] = {}
    for client, answer in answers.items():
        for task, part in answer.tasks.items():
            if part.metrics:
                found.setdefault(task, {})[client] = part.metrics
    return found
