from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common.data.partition import partition
from fedstill.common.errors import DataError
from fedstill.common.scenario import PartitionPlan
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples

CLASSES = ("a", "b", "c", "d")


def examples(count: int = 400, groups: tuple[str, ...] = ()) -> Examples:
    labels = torch.from_numpy(numpy_rng(5).integers(0, len(CLASSES), count))
    return Examples(torch.zeros(count, 1), labels, groups)


def split(
    plan: PartitionPlan, count: int, *, data: Examples | None = None, seed: int = 1
) -> dict[str, NDArray[np.int64]]:
    return partition(data or examples(), plan, count, classes=CLASSES, seed=seed)


BY_CHANCE = [PartitionPlan("iid"), PartitionPlan("dirichlet", alpha=0.3), PartitionPlan("pathological")]


@pytest.mark.parametrize("plan", BY_CHANCE)
def test_every_row_goes_to_one_client(plan: PartitionPlan) -> None:
    parts = split(plan, 4)
    assert list(parts) == ["0", "1", "2", "3"]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(400))
    assert all((np.diff(rows) > 0).all() for rows in parts.values())


@pytest.mark.parametrize("plan", BY_CHANCE)
def test_seed_decides_the_split(plan: PartitionPlan) -> None:
    first, again, other = (split(plan, 4, seed=seed) for seed in (1, 1, 2))
    assert all(first[name].tolist() == again[name].tolist() for name in first)
    assert any(first[name].tolist() != other[name].tolist() for name in first)


@settings(max_examples=25)
@given(count=st.integers(1, 20), rows=st.integers(20, 60), seed=st.integers(0, 2**40))
def test_iid_parts_differ_by_one_at_most(count: int, rows: int, seed: int) -> None:
    parts = split(PartitionPlan("iid", minimum=1), count, data=examples(rows), seed=seed)
    sizes = [len(part) for part in parts.values()]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(rows))


def test_iid_is_what_flower_datasets_makes_of_the_shuffled_rows() -> None:
    from datasets import Dataset
    from flwr_datasets.partitioner import IidPartitioner

    order = numpy_rng(1, "shuffle").permutation(103)
    partitioner = IidPartitioner(num_partitions=4)
    partitioner.dataset = Dataset.from_dict({"row": order})
    parts = split(PartitionPlan("iid"), 4, data=examples(103))
    for number, rows in enumerate(parts.values()):
        assert rows.tolist() == sorted(partitioner.load_partition(number)["row"])


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    def dominance(alpha: float) -> float:
        data = examples(2000)
        parts = split(PartitionPlan("dirichlet", alpha=alpha, minimum=1), 5, data=data)
        shares = [np.bincount(data.targets.numpy()[rows], minlength=4).max() / len(rows) for rows in parts.values()]
        return float(np.mean(shares))

    assert dominance(0.05) > 0.7
    assert dominance(1000.0) < 0.35


@pytest.mark.parametrize("per_client", [1, 2, 3])
def test_pathological_clients_know_so_many_classes(per_client: int) -> None:
    data = examples()
    parts = split(PartitionPlan("pathological", classes=per_client), 6, data=data)
    for rows in parts.values():
        assert len(set(data.targets.numpy()[rows].tolist())) == per_client


def test_natural_clients_are_owners() -> None:
    owners = ("eve", "bob", "ann", "bob", "ann", "bob", "eve")
    data = examples(7, owners)
    parts = split(PartitionPlan("natural", minimum=2), 3, data=data)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"ann": [2, 4], "bob": [1, 3, 5], "eve": [0, 6]}


def test_natural_draws_clients_among_the_owners_with_enough() -> None:
    owners = (*(f"owner-{row % 30:02d}" for row in range(290)), "poor")
    data = examples(291, owners)
    plan = PartitionPlan("natural", minimum=9)
    first, again, other = (split(plan, 8, data=data, seed=seed) for seed in (1, 1, 2))
    assert list(first) == list(again) == sorted(first)
    assert list(first) != list(other)
    assert "poor" not in first
    for name, rows in first.items():
        assert rows.tolist() == [row for row, owner in enumerate(owners) if owner == name]


def test_too_little_data_for_a_client() -> None:
    with pytest.raises(DataError, match=r"client 0 with 7 examples: expected at least partition.minimum=10"):
        split(PartitionPlan("iid"), 3, data=examples(20))
    with pytest.raises(DataError, match="client 2 with 0 examples"):
        split(PartitionPlan("iid", minimum=1), 3, data=examples(2))
    with pytest.raises(DataError, match=r"cannot be split by label: .*attempts"):
        split(PartitionPlan("dirichlet", alpha=0.01, minimum=60), 5)
    with pytest.raises(DataError, match="cannot be split by label"):
        split(PartitionPlan("dirichlet", minimum=1), 30, data=examples(20))
    with pytest.raises(DataError, match="expected at most 2, the owners with at least 2 examples"):
        split(PartitionPlan("natural", minimum=2), 3, data=examples(5, ("a", "a", "b", "b", "c")))


def test_splits_that_have_no_meaning() -> None:
    with pytest.raises(DataError, match="expected data with owners"):
        split(PartitionPlan("natural"), 2)
    with pytest.raises(DataError, match=r"partition.classes=5: expected at most 4"):
        split(PartitionPlan("pathological", classes=5), 2)
    rankings = Examples(torch.zeros(40, 1), torch.zeros(40, 2))
    with pytest.raises(DataError, match="expected one label for each example"):
        split(PartitionPlan("dirichlet"), 2, data=rankings)
    assert [len(rows) for rows in split(PartitionPlan("iid"), 2, data=rankings).values()] == [20, 20]
