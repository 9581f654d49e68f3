"""Distances and common spaces, against numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.geometry import common_space, mean_relations, pairs, relations, relative_distances
from fedstill.common.knowledge import Features, Relations

TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])  # sides 3, 5, 4
RNG = np.random.default_rng(1)
POINTS: NDArray[np.float64] = RNG.normal(size=(40, 3))


def features(values: Any, samples: Any = None) -> Features:
    array = np.asarray(values, dtype=np.float32)
    return Features(np.arange(len(array)) if samples is None else np.asarray(samples), array)


def rotation(width: int, seed: int = 0) -> NDArray[np.float64]:
    turned: NDArray[np.float64] = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
    return turned


def test_distances_over_their_mean() -> None:
    torch.testing.assert_close(relative_distances(TRIANGLE), torch.tensor([0.75, 1.25, 1.0]))
    torch.testing.assert_close(relative_distances(TRIANGLE * 7 + 2), torch.tensor([0.75, 1.25, 1.0]))
    assert relative_distances(torch.ones(3, 2)).tolist() == [0, 0, 0]
    assert relative_distances(torch.ones(1, 2)).tolist() == []


def test_relations_are_symmetric() -> None:
    told = relations(TRIANGLE, np.array([4, 9, 2]))

    np.testing.assert_allclose(told.values, [[0, 0.75, 1.25], [0.75, 0, 1], [1.25, 1, 0]], rtol=1e-6)
    assert told.samples.tolist() == [4, 9, 2]
    torch.testing.assert_close(pairs(torch.from_numpy(told.values)), relative_distances(TRIANGLE))


def test_a_collapsed_model_says_that_all_samples_are_one_and_a_diverged_one_nothing() -> None:
    assert not relations(torch.ones(3, 2), np.arange(3)).values.any()
    for value in (math.nan, math.inf):
        with pytest.raises(KnowledgeError) as caught:
            relations(torch.tensor([[value], [1.0], [2.0]]), np.arange(3))
        assert caught.value.reason is Reason.NOT_FINITE


def test_mean_relations() -> None:
    line = relations(torch.tensor([[0.0], [1.0], [2.0]]), np.arange(3))  # 0.75, 1.5, 0.75

    mean = mean_relations([relations(TRIANGLE, np.arange(3)), line])

    np.testing.assert_allclose(mean.values[np.triu_indices(3, 1)], [0.75, 1.375, 0.875], rtol=1e-6)
    # Who cannot tell samples apart takes nothing from the others.
    flat = relations(torch.ones(3, 1), np.arange(3))
    np.testing.assert_allclose(mean_relations([line, flat]).values, line.values, rtol=1e-6)
    assert not mean_relations([flat, flat]).values.any()


def test_mean_relations_of_the_samples_that_all_have() -> None:
    # Sides 3, 5, 4 between 7, 3 and 5; the other one knows 5, 8 and 7, on a line.
    one = relations(TRIANGLE, np.array([7, 3, 5]))
    other = relations(torch.tensor([[0.0], [1.0], [2.0]]), np.array([5, 8, 7]))

    mean = mean_relations([one, other])

    assert mean.samples.tolist() == [5, 7]
    assert mean.values.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(KnowledgeError, match="no proxy sample that all have"):
        mean_relations([one, relations(torch.ones(1, 1), np.array([6]))])
    single = mean_relations([one, relations(torch.ones(1, 1), np.array([3]))])
    assert (single.samples.tolist(), single.values.tolist()) == ([3], [[0]])


def test_one_view_gives_its_own_whitened_directions() -> None:
    # Two directions that are uncorrelated, of deviation 2 and 1.
    space = common_space([features([[2, 1], [2, -1], [-2, 1], [-2, -1]])], width=2)

    np.testing.assert_allclose(np.abs(space.values), 1, rtol=1e-6)
    np.testing.assert_allclose(space.values[:, 0] * space.values[0, 0], [1, 1, -1, -1], rtol=1e-6)
    np.testing.assert_allclose(space.values[:, 1] * space.values[0, 1], [1, -1, 1, -1], rtol=1e-6)


def test_width_scale_place_and_rotation_do_not_count() -> None:
    single = common_space([features(POINTS)], width=3)
    wide = np.concatenate([POINTS, np.zeros((40, 5))], 1) @ rotation(8)

    for others in ([POINTS @ rotation(3) * 50 + 7], [wide], [wide * 0.01 - 3, POINTS]):
        space = common_space([features(POINTS), *map(features, others)], width=3)
        np.testing.assert_allclose(space.values, single.values, atol=1e-4)


def test_what_is_shared_comes_first() -> None:
    shared, one, other = RNG.normal(size=(3, 200))
    views = [np.stack([one * 3, shared], 1), np.stack([shared, other * 3], 1) @ rotation(2)]

    space = common_space([features(view) for view in views], width=1)

    assert abs(np.corrcoef(space.values[:, 0], shared)[0, 1]) > 0.95


def test_columns_have_variance_one_and_those_that_are_not_there_are_zero() -> None:
    space = common_space([features(POINTS), features(POINTS[:, :2] ** 2)], width=7).values.astype(float)

    np.testing.assert_allclose(space[:, :5].T @ space[:, :5], 40 * np.eye(5), atol=1e-3)
    np.testing.assert_allclose(space.mean(0), 0, atol=1e-5)
    assert not space[:, 5:].any()
    largest = np.abs(space).argmax(0)
    assert (space[largest[:5], np.arange(5)] > 0).all()
    assert not common_space([features(np.ones((4, 3)))], width=2).values.any()


def test_a_common_space_of_the_samples_that_all_have() -> None:
    order = np.array([3, 0, 2, 1])
    one, other = features(POINTS[:4], [10, 20, 30, 40]), features(POINTS[:4][order], np.array([10, 20, 30, 40])[order])

    np.testing.assert_allclose(
        common_space([one, other], width=2).values, common_space([one], width=2).values, atol=1e-5
    )
    fewer = common_space([one, features(POINTS[:3], [40, 50, 20])], width=2)
    assert fewer.samples.tolist() == [20, 40]
    with pytest.raises(KnowledgeError, match="no proxy sample that all have"):
        common_space([one, features(POINTS[:1], [9])], width=2)


def test_relations_of_many_samples_keep_their_mean() -> None:
    told = relations(torch.from_numpy(RNG.normal(size=(300, 5))).float(), np.arange(300))

    assert isinstance(mean_relations([told, told]), Relations)
    np.testing.assert_allclose(mean_relations([told, told]).values, told.values, rtol=1e-5)
