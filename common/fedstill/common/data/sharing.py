"""Which examples become public, for one task or for several that share their proxy samples.

Tasks share proxy samples in one of two ways. If they read the same inputs (the digit and the speaker of a recording),
they take the same rows. If they read different inputs with one label space (images and recordings of the ten digits),
row i of each proxy set is of the same class: one thing, seen by one task and heard by another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.common.data.proxy import content_digest
from fedstill.common.errors import DataError
from fedstill.common.seeding import derive, numpy_rng
from fedstill.common.task import TaskData

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The rows of a task's pool.

    Attributes:
        public: of the proxy set, in its order.
        private: all others, shuffled.
    """

    public: Rows
    private: Rows


def split(data: Mapping[str, TaskData], samples: int, *, seed: int) -> dict[str, Split]:
    """Take proxy samples from the pools of tasks that share them (or of a single task).

    Args:
        data: by task name.
        samples: how many.
        seed: of the run; tasks that share proxy samples have to use the same.

    Raises:
        DataError: if a pool is too small, or the tasks' examples cannot be paired.
    """
    for name, one in data.items():
        if len(one.pool) <= samples:
            raise DataError(
                f"tasks.{name}: {len(one.pool)} examples", f"expected more than proxy.samples={samples}", "lower it"
            )
    orders = {name: numpy_rng(seed, "split").permutation(len(one.pool)) for name, one in data.items()}
    if len({content_digest(one.pool.inputs) for one in data.values()}) == 1:
        return {name: Split(np.sort(order[:samples]), order[samples:]) for name, order in orders.items()}
    public = _paired(data, orders, samples, seed)
    return {name: Split(public[name], order[~np.isin(order, public[name])]) for name, order in orders.items()}


def _paired(data: Mapping[str, TaskData], orders: Mapping[str, Rows], samples: int, seed: int) -> dict[str, Rows]:
    """Rows such that sample i is of the same class for every task; the classes are as even as the pools allow."""
    names = " and ".join(f"'{name}'" for name in data)
    spaces = {one.classes for one in data.values()}
    labels = {name: one.pool.targets for name, one in data.items()}
    if len(spaces) > 1 or any(one.dtype != torch.int64 or one.dim() != 1 for one in labels.values()):
        raise DataError(
            f"proxy samples of tasks {names}",
            "expected the same inputs, or different inputs with the same classes, to be paired by class",
            "give each task its own proxy set, or the same source and options",
        )
    classes = range(len(next(iter(spaces))))
    ranked = {
        name: {label: order[labels[name].numpy()[order] == label] for label in classes}
        for name, order in orders.items()
    }
    # One example of each class has to stay private, for whoever is to learn it.
    there = {label: min(len(rows[label]) for rows in ranked.values()) - 1 for label in classes}
    wanted = _evenly(there, samples)
    if sum(wanted.values()) < samples:
        raise DataError(
            f"tasks {names} have {sum(wanted.values())} pairs of examples of the same class",
            f"expected proxy.samples={samples}",
            "lower it",
        )
    mixed = numpy_rng(derive(seed, "pairs")).permutation(samples)
    return {
        name: np.concatenate([rows[label][: wanted[label]] for label in classes])[mixed]
        for name, rows in ranked.items()
    }


def _evenly(there: Mapping[int, int], samples: int) -> dict[int, int]:
    """How many of each class: one by one in turn, until there are enough or no class has any left."""
    wanted = dict.fromkeys(there, 0)
    while sum(wanted.values()) < samples:
        open_classes = [label for label in there if wanted[label] < there[label]]
        if not open_classes:
            break
        for label in open_classes[: samples - sum(wanted.values())]:
            wanted[label] += 1
    return wanted
