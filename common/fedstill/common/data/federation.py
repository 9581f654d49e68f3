"""A data set split over the parties of a simulated run: the public proxy set, a test set, everybody's private data.

Every party computes the same split from the scenario and its seed, so that nothing has to be sent; a real client reads
its own data instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.data.partition import partition
from fedstill.common.data.proxy import ProxySet
from fedstill.common.data.public import Public, public_samples
from fedstill.common.data.sharing import Rows, Split, split
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes, positions
from fedstill.common.scenario import Scenario, TaskPlan
from fedstill.common.seeding import derive, numpy_rng
from fedstill.common.task import Examples, Task, TaskData, TaskSpec


@dataclass(frozen=True, slots=True, eq=False)
class ClientData:
    """What one client holds for one task.

    Attributes:
        private: to train with.
        holdout: its own, kept aside to measure itself.
        classes: what its model knows.
    """

    private: Examples
    holdout: Examples
    classes: Classes


@dataclass(frozen=True, slots=True, eq=False)
class TaskShare:
    """One task's data, split.

    Attributes:
        spec: the task over its whole label space.
        group: whose proxy samples they are: of the tasks that share them, or of this one.
        proxy: public samples without labels.
        raw: the same as they were read.
        proxy_targets: their labels, which only measurement sees: (P,), or empty where nobody knows them.
        test: samples to measure everybody with, or None.
        clients: by client name.
    """

    spec: TaskSpec
    group: str
    proxy: ProxySet
    raw: Tensor
    proxy_targets: Tensor
    test: Examples | None
    clients: dict[str, ClientData]

    def pooled(self) -> Examples:
        """All private data in one place, over the whole label space."""
        targets = [_over(self.spec.classes, data) for data in self.clients.values()]
        return Examples(torch.cat([data.private.inputs for data in self.clients.values()]), torch.cat(targets))


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """Everybody's data in a simulated run, by task.

    Attributes:
        names: the clients' names in order of their number.
        tasks: by task name.
    """

    names: tuple[str, ...]
    tasks: dict[str, TaskShare]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one client gets of a task's private examples.

    Attributes:
        private: rows to train with.
        holdout: rows kept aside.
        classes: what its model knows.
    """

    private: Rows
    holdout: Rows
    classes: Classes


@dataclass(frozen=True, slots=True, eq=False)
class RawShare:
    """One task's data, split, with inputs as they were read: what parties are given as files.

    Attributes:
        data: the whole source.
        group: as in `TaskShare`.
        public: raw public samples.
        test: raw samples to measure everybody with, or None.
        private: raw examples of all clients.
        parts: whose they are, by client name.
    """

    data: TaskData
    group: str
    public: Public
    test: Examples | None
    private: Examples
    parts: dict[str, Part]

    def client(self, name: str, examples: Examples | None = None) -> ClientData:
        """A client's examples, numbered over its own classes.

        Args:
            name: the client's.
            examples: `private` made ready, or None for the raw ones.
        """
        part = self.parts[name]
        ready = self.private if examples is None else examples
        own = [_renumbered(ready.take(rows), part.classes, self.data.classes) for rows in (part.private, part.holdout)]
        return ClientData(own[0], own[1], part.classes)


def federate(scenario: Scenario, data_dir: Path | None) -> Federation:
    """Split a scenario's data. The same scenario and folder give the same split everywhere; the last one is kept.

    Raises:
        DataError: if data is missing, broken or too little for the clients.
    """
    return _federate(_key(scenario), scenario.clients.count, scenario.seed, data_dir)


def deal(scenario: Scenario, data_dir: Path | None) -> dict[str, RawShare]:
    """The same split with inputs as they were read, by task.

    Raises:
        DataError: as `federate`.
    """
    return _deal(_key(scenario), scenario.clients.count, scenario.seed, data_dir)


def task_spec(name: str, task: Task, data: TaskData, proxy: ProxySet) -> TaskSpec:
    """What both sides have to know of a task, over its whole label space."""
    return TaskSpec(
        name,
        task.output,
        task.modality,
        data.classes,
        tuple(proxy.inputs.shape[1:]),
        vocabulary=data.vocabulary,
        positions=data.positions,
        tokenizer=data.tokenizer,
    )


_Tasks = tuple[tuple[str, TaskPlan], ...]


def _key(scenario: Scenario) -> _Tasks:
    return tuple(scenario.tasks.items())


@lru_cache(maxsize=2)
def _federate(tasks: _Tasks, clients: int, seed: int, data_dir: Path | None) -> Federation:
    raw = _deal(tasks, clients, seed, data_dir)
    shares = {name: _ready(name, plan, raw[name]) for name, plan in tasks}
    _check_shared(dict(tasks), shares)
    (_, first), *others = tasks
    names = client_names(clients) if others or first.clients else tuple(raw[tasks[0][0]].parts)
    return Federation(names, shares)


def _deal(tasks: _Tasks, clients: int, seed: int, data_dir: Path | None) -> dict[str, RawShare]:
    data = {name: plan.task.load(data_dir) for name, plan in tasks}
    splits = _splits(dict(tasks), data, seed)
    shares = {}
    for name, plan in tasks:
        rows, group = splits[name], plan.group(name)
        public = public_samples(plan, data[name].pool, rows.public, data_dir, seed=derive(seed, "data", group))
        share = _cut(plan, data[name], rows.private, public, group, clients=clients, seed=derive(seed, "data", name))
        shares[name] = share if len(tasks) == 1 else _renamed(share, client_names(clients), plan)
    return shares


def _splits(plans: Mapping[str, TaskPlan], data: Mapping[str, TaskData], seed: int) -> dict[str, Split]:
    groups: dict[str, list[str]] = {}
    for name, plan in plans.items():
        groups.setdefault(plan.group(name), []).append(name)
    found: dict[str, Split] = {}
    for group, names in groups.items():
        # Tasks that share have the same plan: all of them read another source, or none does.
        samples = 0 if plans[names[0]].proxy.source else plans[names[0]].proxy.samples
        found |= split({name: data[name] for name in names}, samples, seed=derive(seed, "data", group))
    return found


def _check_shared(plans: Mapping[str, TaskPlan], shares: Mapping[str, TaskShare]) -> None:
    """Refuse tasks that share public samples of another source and do not read the same inputs from it."""
    first: dict[str, str] = {}
    for name, plan in plans.items():
        other = first.setdefault(plan.group(name), name)
        if plan.proxy.source and shares[name].proxy.digest != shares[other].proxy.digest:
            raise DataError(
                f"tasks '{other}' and '{name}', which share public samples of '{plan.proxy.source}'",
                "expected the same inputs",
                "give both the same options, or each its own proxy set",
            )


def _over(space: Classes, data: ClientData) -> Tensor:
    """A client's targets in the numbering of the whole label space."""
    if data.classes == space:
        return data.private.targets
    return torch.from_numpy(positions(data.classes, space))[data.private.targets]


def client_names(count: int) -> tuple[str, ...]:
    """Names that sort as the clients' numbers do: client-0, or client-000 among hundreds."""
    width = len(str(count - 1))
    return tuple(f"client-{number:0{width}d}" for number in range(count))


def _renamed(share: RawShare, names: tuple[str, ...], plan: TaskPlan) -> RawShare:
    # Natural owners of different tasks do not meet: in a run of several tasks a client is known by its number.
    members = plan.clients or tuple(range(len(names)))
    parts = {names[number]: part for number, part in zip(members, share.parts.values(), strict=True)}
    return replace(share, parts=parts)


def _cut(
    plan: TaskPlan, data: TaskData, rows: Rows, public: Public, group: str, *, clients: int, seed: int
) -> RawShare:
    private = data.pool.take(np.sort(rows[: plan.private or None]))
    members = plan.clients or tuple(range(clients))
    rows_of = partition(private, plan.partition, len(members), classes=data.classes, seed=seed)
    natural = plan.partition.kind == "natural" and not plan.clients
    owners = tuple(rows_of) if natural else tuple(client_names(clients)[member] for member in members)
    return RawShare(
        data=data,
        group=group,
        public=public,
        test=None if data.test is None else _some(data.test, plan.test, seed),
        private=private,
        parts={
            owner: _part(private, own, plan, data.classes, derive(seed, "holdout", owner))
            for owner, own in zip(owners, rows_of.values(), strict=True)
        },
    )


def _ready(name: str, plan: TaskPlan, share: RawShare) -> TaskShare:
    raw = share.public.inputs

    def ready(examples: Examples) -> Examples:
        return examples.with_inputs(plan.task.prepare(examples.inputs, raw))

    # All at once: the statistics of the public samples are taken as often as this is called.
    private = ready(share.private)
    proxy = ProxySet(plan.task.prepare(raw, raw))
    return TaskShare(
        spec=task_spec(name, plan.task, share.data, proxy),
        group=share.group,
        proxy=proxy,
        raw=raw,
        proxy_targets=share.public.targets,
        test=None if share.test is None else ready(share.test),
        clients={owner: share.client(owner, private) for owner in share.parts},
    )


def _some(examples: Examples, count: int, seed: int) -> Examples:
    if not count or count >= len(examples):
        return examples
    return examples.take(np.sort(numpy_rng(seed, "test").choice(len(examples), count, replace=False)))


def _part(private: Examples, rows: Rows, plan: TaskPlan, space: Classes, seed: int) -> Part:
    order: NDArray[np.int64] = numpy_rng(seed).permutation(len(rows))
    kept = int(len(rows) * plan.holdout)
    classes = space
    if plan.label_space == "own":
        if private.targets.dtype != torch.int64 or private.targets.dim() != 1:
            raise DataError('label-space = "own"', "expected one class for each example", 'choose "shared"')
        classes = tuple(space[label] for label in torch.unique(private.targets[rows]).tolist())
    return Part(rows[np.sort(order[kept:])], rows[np.sort(order[:kept])], classes)


def _renumbered(examples: Examples, classes: Classes, space: Classes) -> Examples:
    if classes == space:
        return examples
    place = torch.full((len(space),), -1, dtype=torch.int64)
    place[torch.from_numpy(positions(classes, space))] = torch.arange(len(classes))
    return replace(examples, targets=place[examples.targets])
