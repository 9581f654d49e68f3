"""The robust mean: exact weights, liars that move it little, and the plain mean where nobody lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.algorithms.cronus import Cronus
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import ConfigError, KnowledgeError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.robust import filter_weights, robust_soft_labels

SPACE = ("a", "b", "c")


def told(values: Any, classes: str = "ab", samples: Any = None, **others: Any) -> SoftLabels:
    array = np.array(values, np.float32)
    ids = np.arange(len(array)) if samples is None else np.asarray(samples)
    return SoftLabels("categorical", tuple(classes), ids, array, **others)


def test_weights_of_numbers_on_a_line() -> None:
    # Mean 2, distances 2, 2, 2, 2, 8 squared 4, 4, 4, 4, 64: 1 of 5 is to go, the last loses 1, the others 1/16 each.
    line = np.array([[[0.0], [0.0], [0.0], [0.0], [10.0]]])
    lost = np.array([1 / 16] * 4 + [1]) / 1.25
    np.testing.assert_allclose(filter_weights(line, 0.2)[0], 1 - lost, rtol=1e-9)
    # 2 of 5: the first step takes 1.25 of them; then all who are left say the same, and nobody loses more.
    np.testing.assert_allclose(filter_weights(line, 0.4)[0], [15 / 16] * 4 + [0], atol=1e-9)


def test_who_says_the_same_keeps_all() -> None:
    assert filter_weights(np.ones((2, 3, 4)), 0.4).tolist() == [[1, 1, 1]] * 2
    assert filter_weights(np.ones((1, 1, 4)), 0.4).tolist() == [[1]]
    assert filter_weights(np.eye(2)[None], 0.25).tolist() == [[0.75, 0.75]]


def test_what_is_not_known_counts_neither_way() -> None:
    values = np.array([[[0.0, np.nan], [0.0, 5.0], [np.nan, np.nan]]])
    assert filter_weights(values, 0.4).tolist() == [[1, 1, 0]]


def test_two_liars_of_ten_hardly_move_it() -> None:
    rng = np.random.default_rng(1)
    honest = [told(np.stack([share, 1 - share], -1)) for share in rng.uniform(0.8, 0.95, (8, 50))]
    liars = [told([[0, 1]] * 50)] * 2
    truth = mean_soft_labels(honest, space=SPACE).values
    plain = mean_soft_labels([*honest, *liars], space=SPACE).values
    robust = robust_soft_labels([*honest, *liars], corrupted=0.25, space=SPACE).values

    assert np.abs(plain - truth).max() > 0.15
    assert np.abs(robust - truth).max() < 0.03


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0, 0.49))
def test_properties(seed: int, clients: int, corrupted: float) -> None:
    rng = np.random.default_rng(seed)
    opinions = []
    for _ in range(clients):
        classes = np.sort(rng.choice(3, rng.integers(1, 4), replace=False))
        samples = np.sort(rng.choice(9, rng.integers(1, 6), replace=False))
        values = rng.dirichlet(np.ones(len(classes)), len(samples))
        opinions.append(told(values, "".join(SPACE[place] for place in classes), samples))
    plain = mean_soft_labels(opinions, space=SPACE)

    same = robust_soft_labels(opinions, corrupted=0.0, space=SPACE)
    robust = robust_soft_labels(opinions, corrupted=corrupted, space=SPACE)  # is checked as it is made
    backward = robust_soft_labels(opinions[::-1], corrupted=corrupted, space=SPACE)

    np.testing.assert_allclose(same.values, plain.values, atol=1e-6)
    assert same.classes == robust.classes == plain.classes
    np.testing.assert_array_equal(robust.samples, plain.samples)
    np.testing.assert_allclose(robust.values, backward.values, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(0, 0.49))
def test_no_more_is_gone_than_was_to_go(seed: int, vectors: int, corrupted: float) -> None:
    values = np.random.default_rng(seed).normal(size=(3, vectors, 4))
    weights = filter_weights(values, corrupted)
    assert ((weights >= 0) & (weights <= 1)).all()
    np.testing.assert_allclose(weights.sum(-1), (1 - corrupted) * vectors, rtol=1e-9)


def test_what_has_no_robust_mean_is_refused() -> None:
    one = told([[0.5, 0.5]])
    for opinions in ([], [one, told([[0.5, 0.5]], temperature=2.0)], [one, told([[1, 2]], form="logits")]):
        with pytest.raises(KnowledgeError, match="expected at least one, all of one"):
            robust_soft_labels(opinions, corrupted=0.1, space=SPACE)
    with pytest.raises(KnowledgeError, match="expected probabilities"):
        robust_soft_labels([told([[1, 2]], form="logits")], corrupted=0.1, space=SPACE)
    for corrupted in (-0.1, 0.0, 0.5, float("nan")):
        with pytest.raises(ConfigError, match=r"expected 0 < value < 0\.5"):
            Cronus(corrupted=corrupted)
