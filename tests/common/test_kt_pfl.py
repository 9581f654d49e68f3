"""KT-pFL's coefficients, with numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.algorithms.kt_pfl import KTpFL, improved, projected, recalled
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.sides import ClientInfo, Server
from fedstill.common.task import TaskSpec

SPACE = ("cat", "dog", "cow")
EVEN = torch.full((2, 2), 0.5, dtype=torch.float64)


def labels(*rows: list[float], classes: tuple[str, ...] = SPACE[:2], samples: tuple[int, ...] = ()) -> SoftLabels:
    ids = np.array(samples or range(len(rows)))
    return SoftLabels("categorical", classes, ids, np.array(rows, np.float32))


def step(first: SoftLabels, second: SoftLabels, *, rate: float = 0.1, penalty: float = 0.0) -> list[list[float]]:
    found: list[list[float]] = improved(
        EVEN, [first, second], [30.0, 10.0], space=SPACE, even=0.5, penalty=penalty, rate=rate
    ).tolist()
    return found


def server(*names: str) -> Server:
    spec = TaskSpec("pets", "categorical", "tabular", SPACE, (2,))
    return Server(
        spec=spec,
        model_name="linear-softmax",
        model=build_model("linear-softmax", spec, seed=1),
        proxy=ProxySet(torch.zeros(4, 2)),
        samples=np.arange(2),
        training=Training(),
        seed=1,
        round=1,
        clients=tuple(ClientInfo(name, "linear-softmax", 9, 10, SPACE) for name in names),
    )


def said(client: str, *rows: list[float], examples: int = 10) -> Contribution:
    return Contribution(client, examples, labels(*rows))


def test_the_step_is_the_gradients_within_rows_of_sum_1() -> None:
    """One sample, p_1 = (0.8, 0.2), p_2 = (0.4, 0.6): the mixture is (0.6, 0.4).

    d KL(q ‖ p_k) / d c_kl = Σ_y p_l(y) ln(q(y) / p_k(y)) + a number that is the same for all l, which the projection
    takes away: half the difference of the two is the step.
    """
    found = step(labels([0.8, 0.2]), labels([0.4, 0.6]))

    one = 0.4 * math.log(0.6 / 0.8) - 0.4 * math.log(0.4 / 0.2)  # p_1 − p_2 = (0.4, −0.4)
    two = 0.4 * math.log(0.6 / 0.4) - 0.4 * math.log(0.4 / 0.6)
    first, second = 0.1 * 0.75 * one / 2, 0.1 * 0.25 * two / 2
    wanted = [[0.5 - first, 0.5 + first], [0.5 - second, 0.5 + second]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert found[0][0] > 0.5  # both lean to themselves
    assert found[1][1] > 0.5


def test_the_penalty_holds_the_coefficients_even() -> None:
    uneven = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    same = [labels([0.8, 0.2]), labels([0.8, 0.2])]

    found = improved(uneven, same, [1, 1], space=SPACE, even=0.5, penalty=0.5, rate=0.25)

    np.testing.assert_allclose(found, [[0.6875, 0.3125], [0.5, 0.5]], rtol=1e-9)  # 0.25 · 2 · 0.5 · (0.75 − 0.5) less


def test_a_long_step_ends_at_the_edge() -> None:
    assert step(labels([0.8, 0.2]), labels([0.4, 0.6]), rate=100.0) == [[1.0, 0.0], [0.0, 1.0]]


def test_classes_and_samples_that_one_lacks() -> None:
    """The first knows cat and dog and answers on sample 0 alone, the second dog and cow: dog is the mean of both."""
    first = labels([0.8, 0.2], samples=(0,))
    second = labels([0.4, 0.6], [0.5, 0.5], classes=SPACE[1:], samples=(0, 1))

    found = step(first, second)

    # q(cat, dog, cow) ∝ (0.8, c 0.2 + (1 − c) 0.4, 0.6) of sum s; of them (cat, dog) with mass m, against (0.8, 0.2).
    def objective(c: float, own: tuple[float, float], others: float, *, of: float) -> float:
        dog = c * of + (1 - c) * (0.6 - of)
        total = own[0] + dog + others
        mass = (own[0] + dog) / total
        kept = (own[0] / (own[0] + dog), dog / (own[0] + dog))
        return mass * (kept[0] * math.log(kept[0] / own[0]) + kept[1] * math.log(kept[1] / own[1]))

    def slope(own: tuple[float, float], others: float, *, of: float) -> float:
        return (objective(0.5 + 1e-6, own, others, of=of) - objective(0.5 - 1e-6, own, others, of=of)) / 2e-6

    gain = 0.1 * 0.75 * slope((0.8, 0.2), 0.6, of=0.2) / 2
    np.testing.assert_allclose(found[0], [0.5 - gain, 0.5 + gain], rtol=1e-5)
    # For the second client sample 1 is its own answer, whatever the coefficients: half the gradient.
    gain = 0.1 * 0.25 * slope((0.6, 0.4), 0.8, of=0.4) / 2 / 2
    np.testing.assert_allclose(found[1], [0.5 + gain, 0.5 - gain], rtol=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0, 2))
def test_the_projection_is_the_nearest_row(row: list[float], total: float) -> None:
    given_row = torch.tensor(row, dtype=torch.float64)
    found = projected(given_row, total)

    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(total, abs=1e-9)
    moved = given_row - found
    # All that is above 0 moved by the same, and what is at 0 by no more.
    assert all(float(moved[place]) == pytest.approx(float(moved.max()), abs=1e-9) for place in torch.nonzero(found))


def test_everybody_gets_a_mixture_and_the_absent_too() -> None:
    side = server("a", "b", "c")
    method = KTpFL(penalty=0.0, rate=1.0)

    told = method.merge(side, [said("a", [0.8, 0.2]), said("b", [0.4, 0.6])])

    names, matrix = recalled(side.memory, [])
    assert names == ["a", "b", "c"]
    np.testing.assert_allclose(matrix.sum(1), np.ones(3), rtol=1e-12)
    np.testing.assert_allclose(matrix[2], np.full(3, 1 / 3), rtol=1e-12)  # the row of c
    np.testing.assert_allclose(matrix[:, 2], np.full(3, 1 / 3), rtol=1e-12)  # and its column
    assert matrix[0, 0] > matrix[0, 1]
    share = float(matrix[0, 0] / (matrix[0, 0] + matrix[0, 1]))
    np.testing.assert_allclose(told.own["a"].arrays()["values"][0, 0], share * 0.8 + (1 - share) * 0.4, rtol=1e-6)
    for knowledge in (told.own["c"], told.common):
        assert isinstance(knowledge, SoftLabels)
        np.testing.assert_allclose(knowledge.values, [[0.6, 0.4]], rtol=1e-6)

    kept = matrix.clone()
    method.merge(side, [said("b", [0.4, 0.6]), said("c", [0.1, 0.9])])
    _, matrix = recalled(side.memory, [])
    assert torch.equal(matrix[0], kept[0])
    assert torch.equal(matrix[:, 0], kept[:, 0])
    assert matrix[1, 1] > kept[1, 1]


def test_a_new_client_begins_with_its_share() -> None:
    side = server("a", "b")
    KTpFL(penalty=0.0).merge(side, [said("a", [0.8, 0.2]), said("b", [0.4, 0.6])])
    before = recalled(side.memory, [])[1]

    names, matrix = recalled(side.memory, ["a", "b", "c/other"])

    assert names == ["a", "b", "c/other"]
    np.testing.assert_allclose(matrix[:2, :2], before * 2 / 3, rtol=1e-12)
    np.testing.assert_allclose([*matrix[2].tolist(), *matrix[:, 2].tolist()], np.full(6, 1 / 3), rtol=1e-12)


def test_who_lost_all_weight_with_those_present_hears_them_all_the_same() -> None:
    side = server("a", "b", "c")
    method = KTpFL(penalty=0.0, rate=100.0)
    answers = [said("a", [0.8, 0.2]), said("b", [0.4, 0.6]), said("c", [0.1, 0.9])]
    method.merge(side, answers)
    assert recalled(side.memory, [])[1][0].tolist() == [1, 0, 0]

    told = method.merge(side, answers[1:])

    mixture = told.own["a"]
    assert isinstance(mixture, SoftLabels)
    np.testing.assert_allclose(mixture.values, [[0.25, 0.75]], rtol=1e-6)


def test_what_is_refused() -> None:
    wrong: dict[str, Any]
    for wrong in ({"temperature": 0.0}, {"rate": 0.0}, {"penalty": -1.0}, {"distil_epochs": 0}):
        with pytest.raises(ConfigError):
            KTpFL(**wrong)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["categorical", "token-level", "multi-label"]))
def test_a_step_keeps_rows_of_numbers_that_sum_to_what_they_did(seed: int, output: str) -> None:
    """Whatever is told: zeros that a codec made, certainty, padding, classes and samples that some lack."""
    rng = np.random.default_rng(seed)
    opinions = []
    for _ in range(3):
        classes = tuple(name for name in SPACE if rng.random() < 0.7) or SPACE[:1]
        samples = np.flatnonzero(rng.random(4) < 0.7) if rng.random() < 0.5 else np.arange(4)
        samples = samples if len(samples) else np.arange(1)
        values = rng.random((len(samples), *((2,) if output == "token-level" else ()), len(classes)))
        values = np.where(rng.random(values.shape) < 0.3, 0, values)
        if output != "multi-label":
            total = values.sum(-1, keepdims=True)
            values = np.where(total > 0, values / np.maximum(total, 1e-9), np.eye(len(classes))[0])
        if output == "token-level":
            values[rng.random(values.shape[:2]) < 0.3] = 0
        opinions.append(SoftLabels(output, classes, samples, values.astype(np.float32)))
    before = torch.from_numpy(rng.dirichlet(np.ones(4), 3)[:, :3])

    after = improved(before, opinions, [5, 1, 9], space=SPACE, even=0.25, penalty=0.7, rate=0.5)

    assert (after >= 0).all()
    np.testing.assert_allclose(after.sum(1), before.sum(1), atol=1e-9)
