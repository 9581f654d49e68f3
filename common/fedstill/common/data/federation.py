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
from fedstill.common.task import Examples, TaskData, TaskSpec


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
        proxy_targets: their labels, which only measurement sees: (P,), or empty where nobody knows them.
        test: samples to measure everybody with, or None.
        clients: by client name.
    """

    spec: TaskSpec
    group: str
    proxy: ProxySet
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


def federate(scenario: Scenario, data_dir: Path | None) -> Federation:
    """Split a scenario's data. The same scenario and folder give the same split everywhere; the last one is kept.

    Raises:
        DataError: if data is missing, broken or too little for the clients.
    """
    key = tuple((name, plan) for name, plan in scenario.tasks.items())
    return _federate(key, scenario.clients.count, scenario.seed, data_dir)


@lru_cache(maxsize=2)
def _federate(tasks: tuple[tuple[str, TaskPlan], ...], clients: int, seed: int, data_dir: Path | None) -> Federation:
    names: tuple[str, ...] = ()
    shares = {}
    data = {task_name: plan.task.load(data_dir) for task_name, plan in tasks}
    splits = _splits(dict(tasks), data, seed)
    for task_name, plan in tasks:
        own_seed = derive(seed, "data", task_name)
        pool = data[task_name].pool
        group_seed = derive(seed, "data", plan.group(task_name))
        rows = splits[task_name]
        public = public_samples(plan, pool, rows.public, data_dir, seed=group_seed)
        owners, shares[task_name] = _share(
            task_name, plan, data[task_name], rows.private, public, clients=clients, seed=own_seed
        )
        names = names or (client_names(clients) if plan.clients else owners)
    _check_shared(dict(tasks), shares)
    if len(tasks) > 1:
        names = client_names(clients)
        shares = {
            name: _renamed(share, names, plan) for (name, plan), share in zip(tasks, shares.values(), strict=True)
        }
    return Federation(names, shares)


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


def _renamed(share: TaskShare, names: tuple[str, ...], plan: TaskPlan) -> TaskShare:
    # Natural owners of different tasks do not meet: in a run of several tasks a client is known by its number.
    members = plan.clients or tuple(range(len(names)))
    clients = {names[number]: data for number, data in zip(members, share.clients.values(), strict=True)}
    return replace(share, clients=clients)


def _share(
    name: str, plan: TaskPlan, data: TaskData, rows: Rows, public: Public, *, clients: int, seed: int
) -> tuple[tuple[str, ...], TaskShare]:
    rest = np.sort(rows[: plan.private or None])
    raw = public.inputs

    def ready(examples: Examples) -> Examples:
        return examples.with_inputs(plan.task.prepare(examples.inputs, raw))

    private = ready(data.pool.take(rest))
    test = None if data.test is None else ready(_some(data.test, plan.test, seed))
    proxy = ProxySet(plan.task.prepare(raw, raw))
    shape = tuple(proxy.inputs.shape[1:])
    spec = TaskSpec(
        name,
        plan.task.output,
        plan.task.modality,
        data.classes,
        shape,
        vocabulary=data.vocabulary,
        positions=data.positions,
        tokenizer=data.tokenizer,
    )
    members = plan.clients or tuple(range(clients))
    rows_of = partition(private, plan.partition, len(members), classes=data.classes, seed=seed)
    natural = plan.partition.kind == "natural" and not plan.clients
    owners = tuple(rows_of) if natural else tuple(client_names(clients)[member] for member in members)
    return owners, TaskShare(
        spec=spec,
        group=plan.group(name),
        proxy=proxy,
        proxy_targets=public.targets,
        test=test,
        clients={
            owner: _client(private.take(rows), plan, data.classes, derive(seed, "holdout", owner))
            for owner, rows in zip(owners, rows_of.values(), strict=True)
        },
    )


def _some(examples: Examples, count: int, seed: int) -> Examples:
    if not count or count >= len(examples):
        return examples
    return examples.take(np.sort(numpy_rng(seed, "test").choice(len(examples), count, replace=False)))


def _client(examples: Examples, plan: TaskPlan, space: Classes, seed: int) -> ClientData:
    order: NDArray[np.int64] = numpy_rng(seed).permutation(len(examples))
    kept = int(len(examples) * plan.holdout)
    classes = space
    if plan.label_space == "own":
        if examples.targets.dtype != torch.int64 or examples.targets.dim() != 1:
            raise DataError('label-space = "own"', "expected one class for each example", 'choose "shared"')
        known = torch.unique(examples.targets).tolist()
        classes = tuple(space[label] for label in known)
        place = torch.full((len(space),), -1, dtype=torch.int64)
        place[known] = torch.arange(len(known))
        examples = replace(examples, targets=place[examples.targets])
    return ClientData(examples.take(np.sort(order[kept:])), examples.take(np.sort(order[:kept])), classes)
