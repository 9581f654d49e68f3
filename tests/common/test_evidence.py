"""What one task's labels say about another's, with numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.evidence import corrected
from fedstill.common.knowledge import Form, SoftLabels

SAME = {"parity": "digits", "digit": "digits"}


def labels(
    values: Any, classes: str, *, samples: Any = None, output: str = "categorical", form: Form = "probabilities"
) -> SoftLabels:
    array = np.asarray(values, dtype=np.float32)
    ids = np.arange(len(array)) if samples is None else np.asarray(samples)
    return SoftLabels(output, tuple(classes), ids, array, form=form)


def test_by_hand() -> None:
    # "digit" is sure: half x, half y. With soft "parity" and 40 samples n(a, x) = 18 and n(a, y) = 2; κ = 5 adds 2.5 to
    # each: P(x|a) to P(y|a) is as 20.5 to 4.5. The odds are 9 · (41/9)^c; then again with the new n, five times.
    parity = labels([[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 20, "ab")
    digit = labels([[1, 0]] * 20 + [[0, 1]] * 20, "xy")

    found = corrected({"parity": parity, "digit": digit}, SAME, weight=1.0, seed=1)

    surest = 9.0
    for _ in range(5):
        share = 20 * surest / (1 + surest)
        surest = 9 * (share + 2.5) / (20 - share + 2.5)
    odds = found["parity"].values[:, 0] / found["parity"].values[:, 1]
    # c is near 1, for no order of the samples goes together nearly as well.
    assert 9 * (surest / 9) ** 0.8 < odds[0] < surest
    np.testing.assert_allclose(odds[:20] * odds[20:], 1, rtol=1e-4)
    np.testing.assert_array_equal(found["digit"].values, digit.values)


def test_positions_add_up_and_padding_neither_says_nor_hears_anything() -> None:
    x, y, no = [1, 0], [0, 1], [0, 0]
    rows = [[x, no], [x, x], [y, no], [y, y]] * 10
    own = labels([[0.8, 0.2], [0.5, 0.5], [0.2, 0.8], [0.5, 0.5]] * 10, "ab")
    tags = labels(rows, "xy", output="token-level")

    found = corrected({"parity": own, "digit": tags}, SAME, weight=1.0, seed=1)

    one, two = (found["parity"].values[row] for row in (0, 1))
    # Odds of 4 · e and 1 · e²: twice as much is heard from two positions.
    np.testing.assert_allclose(2 * math.log(one[0] / one[1] / 4), math.log(two[0] / two[1]), rtol=1e-4)
    assert one[0] / one[1] > 4.5
    assert (found["digit"].values[0, 1] == 0).all()
    np.testing.assert_allclose(found["digit"].values[1, 0], found["digit"].values[1, 1])


def test_a_weak_task_is_put_right_by_a_strong_one() -> None:
    rng = np.random.default_rng(3)
    digit = rng.integers(0, 10, 400)
    parity = digit % 2
    weak = np.where(rng.random(400) < 3 / 4, parity, 1 - parity)
    opinions = {
        "parity": labels(0.25 + 0.5 * np.eye(2)[weak], "ab"),
        "digit": labels(np.eye(10)[digit], "0123456789"),
    }

    found = corrected(opinions, SAME, weight=1.0, seed=1)

    assert (opinions["parity"].values.argmax(-1) == parity).mean() < 0.8
    assert (found["parity"].values.argmax(-1) == parity).mean() > 0.95
    assert (found["digit"].values.argmax(-1) == digit).all()


def test_tasks_that_have_nothing_to_do_with_each_other_stay() -> None:
    rng = np.random.default_rng(4)
    opinions = {
        "parity": labels(rng.dirichlet([1, 1], 400), "ab"),
        "digit": labels(rng.dirichlet([0.2] * 10, 400), "0123456789"),
    }

    found = corrected(opinions, SAME, weight=1.0, seed=1)

    for name, before in opinions.items():
        np.testing.assert_array_equal(found[name].values.argmax(-1), before.values.argmax(-1))


def test_only_samples_of_which_both_speak() -> None:
    own = labels([[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 20 + [[0.5, 0.5]], "ab")
    other = labels([[1, 0]] * 20 + [[0, 1]] * 20, "xy")

    found = corrected({"parity": own, "digit": other}, SAME, weight=1.0, seed=1)["parity"]

    np.testing.assert_array_equal(found.values[40], own.values[40])
    assert found.values[0, 0] > 0.91


@pytest.mark.parametrize(
    ("other", "groups", "weight"),
    [
        (labels([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, "xy"), {"parity": "one", "digit": "two"}, 1.0),
        (labels([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, "xy"), SAME, 0.0),
        (labels([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, "ab"), SAME, 1.0),
        (labels([[1.0]] * 5 + [[3.0]] * 5, "r", output="regression"), SAME, 1.0),
        (labels([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, "xy", form="logits"), SAME, 1.0),
        (labels([[1.0, 0.0]], "xy", samples=[70]), SAME, 1.0),
    ],
    ids=["other samples", "no weight", "one subject", "no classes", "raw scores", "nothing in common"],
)
def test_nothing_to_hear(other: SoftLabels, groups: dict[str, str], weight: float) -> None:
    own = labels([[0.75, 0.25]] * 5 + [[0.25, 0.75]] * 5, "ab")

    found = corrected({"parity": own, "digit": other}, groups, weight=weight, seed=1)

    np.testing.assert_allclose(found["parity"].values, own.values, rtol=1e-6)
    np.testing.assert_allclose(found["digit"].values, other.values, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), weight=st.floats(0, 3))
def test_distributions_stay_distributions(seed: int, count: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    blank = rng.random((count, 3)) < 0.3
    tags = rng.dirichlet([0.1] * 4, (count, 3)) * ~blank[..., None]
    opinions = {
        "parity": labels(np.eye(2)[rng.integers(0, 2, count)], "ab"),
        "digit": labels(tags, "wxyz", output="token-level"),
    }

    found = corrected(opinions, SAME, weight=weight, seed=1)

    np.testing.assert_allclose(found["parity"].values.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["digit"].values.sum(-1), ~blank, atol=1e-5)
    assert all(np.isfinite(one.values).all() for one in found.values())
