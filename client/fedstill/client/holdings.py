"""What a client has: its name and, for each of its tasks, its data, its model's architecture and the proxy set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fedstill.common.data.federation import ClientData, federate
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import Scenario
from fedstill.common.task import Examples, Task, TaskSpec


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """One task of a client.

    Attributes:
        task: its kind.
        spec: the task over the classes that this client's model knows.
        model: architecture.
        proxy: public samples.
        data: the client's own examples.
        test: samples that everybody is measured with, cut to this client's classes; None if there are none.
    """

    task: Task
    spec: TaskSpec
    model: str
    proxy: ProxySet
    data: ClientData
    test: Examples | None


@dataclass(frozen=True, slots=True, eq=False)
class Holdings:
    """Everything a client has.

    Attributes:
        name: the client's name.
        tasks: by name.
    """

    name: str
    tasks: Mapping[str, Holding]


def simulated(scenario: Scenario, number: int, data_dir: Path | None) -> Holdings:
    """The holdings of one client of a simulated run.

    Raises:
        ConfigError: if the run has no client of that number.
        DataError: if data is missing or broken, or the client has none.
    """
    federation = federate(scenario, data_dir)
    if not 0 <= number < len(federation.names):
        raise ConfigError(
            f"client number {number}",
            f"expected 0 to {len(federation.names) - 1}",
            "set clients.count to the number of nodes",
        )
    name = federation.names[number]
    tasks = {}
    for task_name, share in federation.tasks.items():
        data = share.clients.get(name)
        if data is None:
            continue
        if not len(data.private):
            raise DataError(f"client {name} without examples of task '{task_name}'", "expected at least one")
        tasks[task_name] = Holding(
            task=scenario.tasks[task_name].task,
            spec=share.spec.over(data.classes),
            model=scenario.tasks[task_name].model(number),
            proxy=share.proxy,
            data=data,
            test=_over_own_classes(share.test, share.spec, data),
        )
    return Holdings(name, tasks)


def _over_own_classes(test: Examples | None, spec: TaskSpec, data: ClientData) -> Examples | None:
    """The test samples that a client with few classes can get right at all, with its own numbering of classes."""
    if test is None or data.classes == spec.classes:
        return test
    place = torch.full((len(spec.classes),), -1, dtype=torch.int64)
    place[[spec.classes.index(name) for name in data.classes]] = torch.arange(len(data.classes))
    targets = place[test.targets]
    own = test.take(torch.nonzero(targets >= 0).flatten())
    return Examples(own.inputs, targets[targets >= 0], own.groups)
