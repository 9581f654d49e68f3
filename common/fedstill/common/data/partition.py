"""Splits of a data set over clients, over data in memory; those by label are the partitioners of flwr-datasets."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.common.errors import DataError
from fedstill.common.labels import Classes
from fedstill.common.scenario import PartitionPlan
from fedstill.common.seeding import derive, numpy_rng
from fedstill.common.task import Examples


def partition(
    examples: Examples, plan: PartitionPlan, count: int, *, classes: Classes, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Rows of each client, by the owner's name (its number for all kinds but "natural").

    A "pathological" split leaves out the examples of classes that no client draws, a "natural" one those of the owners
    that are not drawn.

    Raises:
        DataError: if the data cannot be split so, or a client would get less than `plan.minimum` examples.
    """
    if plan.kind == "natural":
        parts = _by_owner(examples, count, plan.minimum, seed)
    else:
        parts = _by_partitioner(examples, plan, count, classes, seed)
    for name, rows in parts.items():
        if len(rows) < plan.minimum:
            raise DataError(
                f"client {name} with {len(rows)} examples",
                f"expected at least partition.minimum={plan.minimum}",
                "fewer clients, a larger alpha, more data or a lower minimum",
            )
    return parts


def _by_partitioner(
    examples: Examples, plan: PartitionPlan, count: int, classes: Classes, seed: int
) -> dict[str, NDArray[np.int64]]:
    # Shuffled once, because the partitioners take neighbours.
    order = numpy_rng(seed, "shuffle").permutation(len(examples))
    if plan.kind == "iid":
        # What IidPartitioner does, without two seconds of imports for one line.
        parts = np.array_split(order, count)
    else:
        labels = examples.targets if examples.strata is None else examples.strata
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise DataError(f"partition.kind = '{plan.kind}'", "expected one label for each example", "choose 'iid'")
        different = len(classes) if examples.strata is None else len(torch.unique(labels))
        parts = _by_label(order, labels.numpy()[order], plan, count, classes=different, seed=seed)
    return {str(number): np.sort(rows) for number, rows in enumerate(parts)}


_DRAWS = 20
"""How often a split is drawn anew, ten tries each, before it is given up: with few examples most are too small."""


def _by_label(
    rows: NDArray[np.int64], labels: NDArray[np.int64], plan: PartitionPlan, count: int, *, classes: int, seed: int
) -> list[NDArray[np.int64]]:
    from datasets import Dataset

    data = Dataset.from_dict({"row": rows, "label": labels})
    reason = ""
    for draw in range(_DRAWS if plan.kind == "dirichlet" else 1):
        scope = ("partition", draw) if draw else ("partition",)
        partitioner = _partitioner(plan, count, classes, derive(seed, *scope) % 2**32)
        try:
            partitioner.dataset = data
            with warnings.catch_warnings():
                # DirichletPartitioner warns at each new try, and raises after the last.
                warnings.simplefilter("ignore")
                return [np.asarray(partitioner.load_partition(k)["row"], dtype=np.int64) for k in range(count)]
        except (ValueError, KeyError) as error:
            reason = str(error)
    raise DataError(
        f"{len(rows)} examples over {count} clients",
        f"cannot be split by label: {reason}",
        "fewer clients, a larger alpha, more data or a lower partition.minimum",
    )


def _partitioner(plan: PartitionPlan, count: int, classes: int, seed: int) -> Any:
    from flwr_datasets import partitioner as kinds

    if plan.kind == "dirichlet":
        return kinds.DirichletPartitioner(
            num_partitions=count, partition_by="label", alpha=plan.alpha, min_partition_size=plan.minimum, seed=seed
        )
    if plan.classes > classes:
        raise DataError(f"partition.classes={plan.classes}", f"expected at most {classes}, the number of classes")
    return kinds.PathologicalPartitioner(
        num_partitions=count,
        partition_by="label",
        num_classes_per_partition=plan.classes,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )


def _by_owner(examples: Examples, count: int, minimum: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """One client for each natural owner; `count` of them, drawn at random, if there are more with enough examples."""
    if not examples.groups:
        raise DataError("partition.kind = 'natural'", "expected data with owners", "choose another kind of partition")
    groups = np.asarray(examples.groups)
    names, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    owners = np.flatnonzero(sizes >= minimum)
    if len(owners) < count:
        raise DataError(
            f"clients.count={count}",
            f"expected at most {len(owners)}, the owners with at least {minimum} examples",
            "lower clients.count or partition.minimum",
        )
    chosen = np.sort(numpy_rng(seed, "owners").choice(owners, count, replace=False))
    return {str(names[owner]): np.flatnonzero(place == owner) for owner in chosen}
