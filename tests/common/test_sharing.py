"""Which examples become public: for one task, for tasks of the same inputs, for pairs of the same class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.data.sharing import split
from fedstill.common.errors import DataError
from fedstill.common.seeding import torch_rng
from fedstill.common.task import Examples, TaskData


def data(count: int, *, classes: tuple[str, ...] = ("a", "b", "c"), width: int = 2, seed: int = 0) -> TaskData:
    rng = torch_rng(seed, "data")
    targets = torch.randint(len(classes), (count,), generator=rng)
    return TaskData(Examples(torch.randn(count, width, generator=rng), targets), classes)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 1000))
def test_every_row_is_public_or_private(count: int, samples: int, seed: int) -> None:
    if samples >= count:
        return
    rows = split({"one": data(count)}, samples, seed=seed)["one"]

    assert len(rows.public) == samples
    assert sorted([*rows.public, *rows.private]) == list(range(count))
    assert (np.diff(rows.public) > 0).all()


def test_tasks_with_the_same_inputs_take_the_same_rows() -> None:
    one = data(50)
    other = TaskData(Examples(one.pool.inputs, 1 - one.pool.targets.clamp_max(1)), ("even", "odd"))

    rows = split({"one": one, "other": other}, 20, seed=3)

    np.testing.assert_array_equal(rows["one"].public, rows["other"].public)
    np.testing.assert_array_equal(rows["one"].private, rows["other"].private)
    again = split({"one": one}, 20, seed=3)
    np.testing.assert_array_equal(rows["one"].public, again["one"].public)


def test_different_inputs_are_paired_by_class() -> None:
    seen, heard = data(60), data(90, width=5, seed=1)

    rows = split({"seen": seen, "heard": heard}, 30, seed=3)

    classes = [
        one.pool.targets[torch.from_numpy(rows[name].public)] for name, one in (("seen", seen), ("heard", heard))
    ]
    assert torch.equal(*classes)
    assert torch.bincount(classes[0]).tolist() == [10, 10, 10]
    for name, one in (("seen", seen), ("heard", heard)):
        assert sorted([*rows[name].public, *rows[name].private]) == list(range(len(one.pool)))


def test_a_class_that_is_rare_is_made_up_for_by_the_others() -> None:
    rare = TaskData(Examples(torch.randn(33, 2), torch.tensor([0] * 3 + [1] * 15 + [2] * 15)), ("a", "b", "c"))

    rows = split({"rare": rare, "other": data(90, width=5)}, 20, seed=3)

    labels = rare.pool.targets[torch.from_numpy(rows["rare"].public)]
    assert torch.bincount(labels).tolist() == [2, 9, 9]  # one of the rare class stays private


def test_too_few_examples() -> None:
    with pytest.raises(DataError, match=r"tasks.one: 30 examples: expected more than proxy.samples=30"):
        split({"one": data(30)}, 30, seed=0)
    with pytest.raises(DataError, match=r"have \d+ pairs of examples of the same class: expected proxy.samples=29"):
        split({"one": data(30), "other": data(30, width=4)}, 29, seed=0)


def test_what_cannot_be_paired() -> None:
    with pytest.raises(DataError, match="proxy samples of tasks 'one' and 'other': expected the same inputs, or"):
        split({"one": data(30), "other": data(30, width=4, classes=("x", "y", "z"))}, 5, seed=0)
    numbers = TaskData(Examples(torch.randn(30, 4), torch.randn(30, 1)), ("a", "b", "c"))
    with pytest.raises(DataError, match="expected the same inputs, or different inputs with the same classes"):
        split({"one": data(30), "other": numbers}, 5, seed=0)
