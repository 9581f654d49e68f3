"""What one run says in a comparison: pure functions of its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedstill.common.learning import Training
from fedstill.server.folder import RunFolder
from fedstill.server.report.series import Curve, class_rates, cost, progress
from fedstill.server.summary import Record, Summary, TaskResult, client_measures, mean, number, of_kind, summarise
from fedstill.simulations.compare.plan import Cell
from fedstill.simulations.compare.steps import CLIENTS, SERVER, counted
from fedstill.simulations.compare.work import STEPS

Key = tuple[str, str, int]
"""A scenario, a task of it, and a seed."""

TARGET = 0.9
"""Share of the final value whose price in bytes is told."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One task of one run. Measuring everybody alone at the start counts neither as bytes nor as time nor as steps.

    Attributes:
        subject: the scenario.
        task, measure: name of the task, and of its main measure.
        share: the measure lies in 0 … 1.
        method, seed: of the run.
        clients: the measure, mean over clients, after the run; None if the method has none.
        worst: the client for whom it is least.
        teacher: of the server's model.
        worst_class: the least, over classes, of the clients' mean accuracy on a class (of the server's, if there are no
            clients); None if the task has no classes to measure.
        up, down: bytes of all clients and all tasks, the whole run.
        to_target: bytes, up and down, until the clients' mean was at `TARGET` of its last value; None without exchange.
        seconds: of the whole run.
        private: optimiser steps of all clients on private data: what a budget makes equal.
        further: all other optimiser steps of clients, such as those of distillation; None if they were not counted.
        server: optimiser steps of the server.
        values: the measure of each client.
        gains: how much better than alone each client is.
        curve: the clients' mean by round; of the server's model if there are no clients.
        bytes: total, up and down, when each value of the curve was reached; () without exchange.
    """

    subject: str
    task: str
    measure: str
    share: bool
    method: str
    seed: int
    clients: float | None
    worst: float | None
    teacher: float | None
    worst_class: float | None
    up: int
    down: int
    to_target: float | None
    seconds: float
    private: int
    further: int | None
    server: int | None
    values: Mapping[str, float]
    gains: Mapping[str, float]
    curve: Curve
    bytes: tuple[float, ...]


def figures(cell: Cell, folder: RunFolder) -> list[Figures]:
    """The figures of each task of a finished run; gains are not known from one run and stay empty."""
    config, records = folder.config(), folder.records()
    found = summarise(folder.name, config, records)
    steps = [*of_kind(records, "round"), *of_kind(records, "finish")]
    private = private_steps(config, records, cell.scenario.training)
    # Private training is a part of what was counted; methods without clients have none.
    told = counted(folder.path / STEPS, first=1, last=steps[-1]["step"])
    return [
        replace(
            _of_task(cell, found, task, config, records),
            up=sum(record["bytes"]["up"] for record in steps),
            down=sum(record["bytes"]["down"] for record in steps),
            seconds=math.fsum(record["seconds"] for record in steps),
            private=private,
            further=told[CLIENTS] - private if told else None,
            server=told[SERVER] if told else None,
        )
        for task in found.tasks
    ]


def private_steps(config: Mapping[str, object], records: Sequence[Record], training: Training) -> int:
    """Optimiser steps that all clients together take on private data, by each one's examples and the scenario's epochs.

    What rejected answers and attempts below quorum cost counts too: the clients have done it.
    """
    roster = config.get("roster", {})
    total = 0
    for record in of_kind(records, "round"):
        epochs = training.epochs + (training.warmup if record["step"] == 1 else 0)
        for attempt in (record, *record["abandoned"]):
            for client in attempt["cohort"]:
                tasks = roster.get(client, {}) if isinstance(roster, dict) else {}
                total += sum(epochs * math.ceil(task["examples"] / training.batch_size) for task in tasks.values())
    return total


def with_gains(everything: Sequence[Figures], alone: Mapping[Key, Mapping[str, float]]) -> list[Figures]:
    """The figures with each client's gain over its model trained alone.

    Args:
        everything: of all runs.
        alone: values of the clients alone.
    """
    return [
        replace(one, gains={name: value - floor[name] for name, value in one.values.items() if name in floor})
        for one in everything
        for floor in [alone.get((one.subject, one.task, one.seed), {})]
    ]


def alone_values(cell: Cell, folder: RunFolder, measures: Mapping[str, str]) -> dict[Key, dict[str, float]]:
    """Each client's value alone, from the run of the floor: as measured at its start, else at its end.

    Args:
        cell: the floor's run.
        folder: where it lies.
        measures: main measure of each task.
    """
    records = folder.records()
    found = {}
    for task, measure in measures.items():
        values = client_measures(of_kind(records, "alone"), task, f"alone.{measure}")
        values = values or client_measures(of_kind(records, "finish"), task, f"final.{measure}")
        known = {name: number(value) for name, value in values.items()}
        found[cell.subject, task, cell.seed] = {name: value for name, value in known.items() if value is not None}
    return found


def _of_task(
    cell: Cell, found: Summary, task: TaskResult, config: Mapping[str, object], records: Sequence[Record]
) -> Figures:
    curves = progress(records, task)
    price = cost(records, curves, found)
    values = {client.name: client.after for client in task.clients if client.after is not None}
    main = curves.main
    return Figures(
        subject=cell.subject,
        task=task.name,
        measure=task.measure,
        share=task.share,
        method=cell.method,
        seed=cell.seed,
        clients=mean(values.values()),
        worst=min(values.values(), default=None),
        teacher=task.teacher,
        worst_class=_worst_class(task, records),
        up=0,
        down=0,
        to_target=bytes_to_target(price.values, price.bytes) if found.exchanges else None,
        seconds=0.0,
        private=0,
        further=None,
        server=None,
        values=values,
        gains={},
        curve=main or curves.teacher,
        bytes=tuple(price.bytes) if found.exchanges else (),
    )


def bytes_to_target(values: Sequence[float], spent: Sequence[float], *, target: float = TARGET) -> float | None:
    """Bytes that had passed when a curve first was at a share of its last value; None for a last value of 0 or less."""
    if not values or values[-1] <= 0:
        return None
    return next(cost for value, cost in zip(values, spent, strict=True) if value / values[-1] >= target - 1e-9)


def _worst_class(task: TaskResult, records: Sequence[Record]) -> float | None:
    rates = class_rates(records, task)
    by_class = [mean(row[place] for row in rates.after) for place in range(len(rates.classes))] if rates.after else []
    if not rates.after:
        of_server = [record["tasks"].get(task.name, {}).get("server", {}) for record in reversed(records)]
        last: Sequence[object] = next((told["class-accuracy"] for told in of_server if "class-accuracy" in told), ())
        by_class = [number(rate) for rate in last]
    return min((rate for rate in by_class if rate is not None), default=None)
