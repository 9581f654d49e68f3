"""What a client has: its name and, for each of its tasks, its data, its model's architecture and the proxy set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedstill.client.examples import read_examples
from fedstill.client.reading import read_own
from fedstill.client.site import Site
from fedstill.common.data.federation import ClientData, federate
from fedstill.common.data.pack import Pack, PublicTask, read_pack
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, DataError, nearest
from fedstill.common.labels import Classes
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
        raw: the public samples as they were read; None if only prepared ones are at hand.
        space: the task's whole label space; () if it is the spec's.
    """

    task: Task
    spec: TaskSpec
    model: str
    proxy: ProxySet
    data: ClientData
    test: Examples | None
    raw: Tensor | None = None
    space: Classes = ()

    @property
    def whole(self) -> TaskSpec:
        """The task over its whole label space."""
        return self.spec.over(self.space or self.spec.classes)


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
            raw=share.raw,
            space=share.spec.classes,
        )
    return Holdings(name, tasks)


def owned(site: Site) -> Holdings:
    """The holdings of a site: its own examples, and the public pack.

    Raises:
        ConfigError: for a task that the pack does not have, or an option that its kind does not have.
        DataError: if data is missing or broken, of another form than the public samples, or there is none.
    """
    pack = read_pack(Path(site.public))
    for name in site.tasks:
        pack.task(name)
    # In the order of the pack, so that all sites answer in one order.
    return Holdings(site.name, {name: own_task(site, pack, name) for name in pack.tasks if name in site.tasks})


def own_task(site: Site, pack: Pack, name: str) -> Holding:
    """One task of a site.

    Raises:
        ConfigError, DataError: see `owned`.
    """
    plan, public = site.tasks[name], pack.open(name)
    data = read_examples(Path(site.data) / plan.examples) if plan.examples else read_own(site, pack, name, public)
    _check_form(f"task '{name}' of {site.name}", data, public)
    if not len(data.private):
        raise DataError(f"{site.name} without examples of task '{name}'", "expected at least one")
    return Holding(
        task=public.task,
        spec=public.spec.over(data.classes),
        model=plan.model,
        proxy=public.proxy,
        data=ClientData(public.ready(data.private), public.ready(data.holdout), data.classes),
        test=_over_own_classes(public.test, public.spec, data),
        raw=public.raw,
        space=public.spec.classes,
    )


def _check_form(what: str, data: ClientData, public: PublicTask) -> None:
    """Refuse examples that the public samples could not stand among."""
    came = (tuple(data.private.inputs.shape[1:]), data.private.inputs.dtype)
    wanted = (tuple(public.raw.shape[1:]), public.raw.dtype)
    if came != wanted:
        raise DataError(
            f"{what}: inputs of shape {came[0]} and type {came[1]}",
            f"expected {wanted[0]} and {wanted[1]}, as the public samples",
            "give the reader the options of the pack",
        )
    strange = sorted(set(data.classes) - set(public.spec.classes))
    if strange:
        raise DataError(
            f"{what}: class '{strange[0]}'",
            "expected a class of the pack's label space",
            nearest(strange[0], public.spec.classes),
        )


def _over_own_classes(test: Examples | None, spec: TaskSpec, data: ClientData) -> Examples | None:
    """The test samples that a client with few classes can get right at all, with its own numbering of classes."""
    if test is None or data.classes == spec.classes:
        return test
    place = torch.full((len(spec.classes),), -1, dtype=torch.int64)
    place[[spec.classes.index(name) for name in data.classes]] = torch.arange(len(data.classes))
    targets = place[test.targets]
    own = test.take(torch.nonzero(targets >= 0).flatten())
    return Examples(own.inputs, targets[targets >= 0], own.groups)
