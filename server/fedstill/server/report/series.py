"""What the report's plots show, as numbers: pure functions of records. No plotting here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from fedstill.server.summary import (
    Record,
    Summary,
    TaskResult,
    client_measures,
    client_names,
    mean,
    number,
    of_kind,
    rejections,
)

K = TypeVar("K")

Curve = dict[int, float]
"""A value by round."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A task's main measure by round.

    Attributes:
        clients: each client's curve: after it took in the knowledge of that round, or after private training for a
            method without exchange.
        together: mean of the clients after they took in the knowledge of that round.
        trained: mean of the clients after private training in that round.
        teacher: the server's model.
        consensus: the aggregated soft labels on the proxy samples.
    """

    clients: Mapping[str, Curve]
    together: Curve
    trained: Curve
    teacher: Curve
    consensus: Curve

    @property
    def main(self) -> Curve:
        """The curve that stands for the clients."""
        return self.together or self.trained


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that had passed when a value was reached.

    Attributes:
        bytes: total of all clients, up and down.
        values: the task's main measure, mean of the clients.
        fedavg: bytes of FedAvg after the first round and after the last; () if there is nothing to compare.
    """

    bytes: Sequence[float]
    values: Sequence[float]
    fedavg: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ClassRates:
    """A measure by client and class.

    Attributes:
        clients, classes: names of rows and columns.
        known: for each client, whether its model knows the class.
        alone, after: for each client, a value by class or None; () for a stage that was not measured.
    """

    clients: tuple[str, ...]
    classes: tuple[str, ...]
    known: tuple[tuple[bool, ...], ...]
    alone: tuple[tuple[float | None, ...], ...]
    after: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Participation:
    """Who did what in which round.

    Attributes:
        clients: names.
        rounds: numbers.
        accepted, rejected, waived: pairs (client's place, round's place): who counted, who did not, and who was asked
            only in attempts that were given up.
        abandoned: attempts given up, by round.
    """

    clients: tuple[str, ...]
    rounds: tuple[int, ...]
    accepted: frozenset[tuple[int, int]]
    rejected: frozenset[tuple[int, int]]
    waived: frozenset[tuple[int, int]]
    abandoned: tuple[int, ...]

    @property
    def smooth(self) -> bool:
        """Everybody was asked and counted in every round, at the first attempt."""
        return len(self.accepted) == len(self.clients) * len(self.rounds) and not any(self.abandoned)


def progress(records: Sequence[Record], task: TaskResult) -> Progress:
    """The curves of a task.

    The knowledge of round r reaches the clients at the beginning of step r + 1, so what they measure there as
    "distilled" (at the end of the run: "final") belongs to round r.
    """
    together: dict[int, dict[str, float]] = {}
    trained: dict[int, dict[str, float]] = {}
    for record in records:
        step, kind = record["step"], record["kind"]
        measured = {key: _numbers(client_measures([record], task.name, f"{key}.{task.measure}")) for key in _STAGES}
        if kind == "round":
            _add(trained, step, measured["trained"])
            _add(together, step - 1, measured["distilled"])
        elif kind == "finish":
            _add(together, step - 1, measured["final"])
    # Without exchange, the finish alone measures what private training had reached already.
    if set(together) <= {max(trained, default=0)} and len(trained) > 1:
        together = {}
    rounds = of_kind(records, "round")
    return Progress(
        clients=_by_client(together or trained),
        together=_means(together),
        trained=_means(trained),
        teacher=_server_curve(rounds, task.name, task.measure),
        consensus=_server_curve(rounds, task.name, f"consensus.{task.measure}"),
    )


_STAGES = ("trained", "distilled", "final")


def cost(records: Sequence[Record], curves: Progress, summary: Summary) -> Cost:
    """The main curve of a task over the bytes that it took; measuring everybody alone at the start is not counted."""
    steps = {record["step"]: record["bytes"] for record in records if record["kind"] in ("round", "finish")}
    # What is told at the start, the server's model say, is measured before anything has gone up: at place 0.
    up = {0: 0, **dict(zip(steps, accumulate(part["up"] for part in steps.values()), strict=True))}
    down = {0: 0, **dict(zip(steps, accumulate(part["down"] for part in steps.values()), strict=True))}
    later = 1 if curves.together else 0
    main = {place: value for place, value in curves.main.items() if place in up}
    weights = {client.name: client.fedavg for client in summary.traffic}
    fedavg = list(
        accumulate(
            2 * sum(weights[name] for name in record["bytes"]["clients"]) for record in of_kind(records, "round")
        )
    )
    return Cost(
        bytes=[up[place] + down.get(place + later, down[place]) for place in main],
        values=list(main.values()),
        fedavg=tuple(dict.fromkeys((fedavg[0], fedavg[-1]))) if summary.saving is not None else (),
    )


def class_rates(records: Sequence[Record], task: TaskResult) -> ClassRates:
    """The measure by class that comes with the main one, alone and after the run."""
    measure = f"class-{task.measure.removeprefix('own-')}"
    alone = client_measures(of_kind(records, "alone"), task.name, f"alone.{measure}")
    after = client_measures(records, task.name, f"trained.{measure}")
    after |= client_measures(of_kind(records, "finish"), task.name, f"final.{measure}")
    clients = [client for client in task.clients if client.name in alone or client.name in after]
    # A run that wrote down no label space cannot be shown by class.
    clients = [client for client in clients if client.classes and task.classes]
    return ClassRates(
        clients=tuple(client.name for client in clients),
        classes=task.classes,
        known=tuple(tuple(name in client.classes for name in task.classes) for client in clients),
        alone=_rows(alone, clients, task) if alone else (),
        after=_rows(after, clients, task) if after else (),
    )


def participation(config: Mapping[str, Any], records: Sequence[Record]) -> Participation:
    """Who was asked, who counted and who did not, in each round."""
    rounds = of_kind(records, "round")
    names = client_names(config, records)
    rows = {name: place for place, name in enumerate(names)}
    accepted = {(rows[name], column) for column, record in enumerate(rounds) for name in record["accepted"]}
    rejected = {
        (rows[rejection["client"]], column)
        for column, record in enumerate(rounds)
        for rejection in rejections(record)
        if rejection["client"] in rows
    }
    asked = {
        (rows[name], column)
        for column, record in enumerate(rounds)
        for attempt in (record, *record["abandoned"])
        for name in attempt["cohort"]
    }
    return Participation(
        clients=tuple(names),
        rounds=tuple(record["step"] for record in rounds),
        accepted=frozenset(accepted),
        rejected=frozenset(rejected - accepted),
        waived=frozenset(asked - accepted - rejected),
        abandoned=tuple(len(record["abandoned"]) for record in rounds),
    )


def _add(curves: dict[int, dict[str, float]], place: int, values: Mapping[str, float]) -> None:
    if values:
        curves.setdefault(place, {}).update(values)


def _means(curves: Mapping[int, Mapping[str, float]]) -> Curve:
    means = {place: mean(values.values()) for place, values in sorted(curves.items())}
    return {place: value for place, value in means.items() if value is not None}


def _by_client(curves: Mapping[int, Mapping[str, float]]) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for place, values in sorted(curves.items()):
        for client, value in values.items():
            found.setdefault(client, {})[place] = value
    return found


def _server_curve(rounds: Sequence[Record], task: str, key: str) -> Curve:
    values = {record["step"]: record["tasks"].get(task, {}).get("server", {}).get(key) for record in rounds}
    return _numbers(values)


def _numbers(values: Mapping[K, object]) -> dict[K, float]:
    found = {key: number(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None}


def _rows(values: Mapping[str, Any], clients: Sequence[Any], task: TaskResult) -> tuple[tuple[float | None, ...], ...]:
    rows = []
    for client in clients:
        own = dict(zip(client.classes, values.get(client.name) or (), strict=False))
        rows.append(tuple(number(own.get(name)) for name in task.classes))
    return tuple(rows)
