"""Aggregation, against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common.ensemble import disagreement, hardened, mean_parameters, mean_soft_labels, sharpened
from fedstill.common.errors import KnowledgeError, UnsupportedError
from fedstill.common.knowledge import Form, Parameters, SoftLabels

SPACE = ("a", "b", "c")


def labels(
    values: Any,
    classes: Sequence[str] = ("a", "b"),
    samples: Sequence[int] | None = None,
    *,
    output: str = "categorical",
    form: Form = "probabilities",
    temperature: float = 1.0,
) -> SoftLabels:
    array = np.asarray(values, dtype=np.float32)
    ids = np.arange(len(array)) if samples is None else np.asarray(samples)
    return SoftLabels(output, tuple(classes), ids.astype(np.int64), array, temperature, form)


def close(values: NDArray[np.float32], expected: Any) -> None:
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


class TestMeanSoftLabels:
    def test_equal_weights(self) -> None:
        mean = mean_soft_labels([labels([[0.8, 0.2]]), labels([[0.4, 0.6]])], space=SPACE)
        assert mean.classes == ("a", "b")
        close(mean.values, [[0.6, 0.4]])

    def test_weights(self) -> None:
        # (3 · 0.8 + 1 · 0.4) / 4 = 0.7
        mean = mean_soft_labels([labels([[0.8, 0.2]]), labels([[0.4, 0.6]])], [3, 1], space=SPACE)
        close(mean.values, [[0.7, 0.3]])

    def test_classes_are_aligned_by_name(self) -> None:
        mean = mean_soft_labels([labels([[0.8, 0.2]]), labels([[0.6, 0.4]], ("b", "a"))], space=SPACE)
        close(mean.values, [[0.6, 0.4]])  # a: (0.8 + 0.4) / 2

    def test_different_classes_and_samples(self) -> None:
        one = labels([[0.6, 0.4]], ("a", "b"), [0])
        two = labels([[0.2, 0.8], [0.3, 0.7]], ("b", "c"), [0, 5])
        mean = mean_soft_labels([one, two], space=SPACE)
        assert mean.classes == SPACE
        assert mean.samples.tolist() == [0, 5]
        # Sample 0: a 0.6, b (0.4 + 0.2) / 2 = 0.3, c 0.8, over their sum 1.7. Sample 5: only the second knows it.
        close(mean.values, [[6 / 17, 3 / 17, 8 / 17], [0, 0.3, 0.7]])

    def test_weights_count_among_those_who_know_the_class(self) -> None:
        # b: (3 · 0.4 + 1 · 0.2) / 4 = 0.35; a 0.6 and c 0.8 have one witness each; sum 1.75
        mean = mean_soft_labels(
            [labels([[0.6, 0.4]], ("a", "b")), labels([[0.2, 0.8]], ("b", "c"))], [3, 1], space=SPACE
        )
        close(mean.values, [[0.6 / 1.75, 0.2, 0.8 / 1.75]])

    def test_the_order_of_samples_does_not_matter(self) -> None:
        mean = mean_soft_labels(
            [labels([[1, 0], [0, 1]], samples=[7, 2]), labels([[1, 0], [1, 0]], samples=[2, 7])], space=SPACE
        )
        assert mean.samples.tolist() == [2, 7]
        close(mean.values, [[0.5, 0.5], [1, 0]])

    def test_a_sample_that_only_weight_0_knows_is_even(self) -> None:
        mean = mean_soft_labels([labels([[1, 0]], samples=[0]), labels([[1, 0]], samples=[1])], [1.0, 0.0], space=SPACE)
        close(mean.values, [[1, 0], [0.5, 0.5]])

    def test_logits_are_not_normalised_and_unknown_pairs_are_0(self) -> None:
        one = labels([[1, 3]], ("a", "b"), [0], form="logits")
        two = labels([[3, -1], [4, 4]], ("a", "c"), [0, 1], form="logits")
        mean = mean_soft_labels([one, two], space=SPACE)
        assert mean.form == "logits"
        close(mean.values, [[2, 3, -1], [4, 0, 4]])

    def test_multi_label_is_not_normalised(self) -> None:
        both = [labels([[0.2, 1.0]], output="multi-label"), labels([[0.6, 1.0]], output="multi-label")]
        close(mean_soft_labels(both, space=SPACE).values, [[0.4, 1.0]])

    def test_regression(self) -> None:
        both = [labels([[-2.0, 9.0]], output="regression"), labels([[4.0, 9.0]], output="regression")]
        close(mean_soft_labels(both, space=SPACE).values, [[1.0, 9.0]])

    def test_positions(self) -> None:
        one = labels([[[1, 0], [0.5, 0.5]]])
        two = labels([[[1, 0], [0.1, 0.9]]], ("b", "a"))
        close(mean_soft_labels([one, two], space=SPACE).values, [[[0.5, 0.5], [0.7, 0.3]]])

    def test_a_thousand_clients_lose_nothing(self) -> None:
        mean = mean_soft_labels([labels([[1.0, 0.0], [0.1, 0.9]])] * 1000, space=SPACE)
        assert mean.values.dtype == np.float32
        assert mean.values[0].tolist() == [1.0, 0.0]
        np.testing.assert_array_equal(mean.values[1], np.array([0.1, 0.9], dtype=np.float32))

    @pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    def test_bad_weights(self, weights: list[float]) -> None:
        with pytest.raises(KnowledgeError, match="expected 2 finite numbers >= 0, not all 0"):
            mean_soft_labels([labels([[1, 0]]), labels([[1, 0]])], weights, space=SPACE)

    def test_what_does_not_go_together(self) -> None:
        first = labels([[1.0, 0.0]])
        for other in (
            labels([[1.0, 0.0]], output="multi-label"),
            labels([[1.0, 0.0]], form="logits"),
            labels([[1.0, 0.0]], temperature=2.0),
            labels([[[1.0, 0.0]]]),
        ):
            with pytest.raises(KnowledgeError, match="expected the same"):
                mean_soft_labels([first, other], space=SPACE)
        with pytest.raises(KnowledgeError, match="expected at least one contribution"):
            mean_soft_labels([], space=SPACE)
        with pytest.raises(KnowledgeError, match="expected a class of the task's label space"):
            mean_soft_labels([labels([[1.0, 0.0]], ("a", "z"))], space=SPACE)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 2**32), st.integers(1, 5))
    def test_a_mean_of_distributions_is_one_whatever_their_order(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        opinions = []
        for _ in range(count):
            classes = [name for name in SPACE if rng.random() < 0.7] or ["b"]
            samples = rng.choice(6, int(rng.integers(1, 6)), replace=False)
            opinions.append(labels(rng.dirichlet(np.ones(len(classes)), len(samples)), classes, samples.tolist()))
        mean = mean_soft_labels(opinions, space=SPACE)
        close(mean.values.sum(-1), np.ones(len(mean.samples)))
        assert set(mean.samples) == {number for opinion in opinions for number in opinion.samples}
        other = mean_soft_labels(opinions[::-1], space=SPACE)
        close(other.values, mean.values)


class TestHardened:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), count=st.integers(1, 60), temperature=st.floats(0.2, 1))
    @example(seed=4514, count=1, temperature=0.203125)  # two rows almost without a tie: scaling alone is too slow
    def test_every_class_keeps_its_share_of_what_is_labelled(self, seed: int, count: int, temperature: float) -> None:
        rng = np.random.default_rng(seed)
        there = rng.random((count, 2, 1)) < 0.7
        soft = labels(
            (rng.dirichlet([0.5] * 3, (count, 2)) * there).tolist(), SPACE[:3], list(range(count)), output="token-level"
        )
        hard = hardened(soft, temperature)
        np.testing.assert_allclose(hard.values.sum((0, 1)), soft.values.sum((0, 1)), atol=1e-4 * count)
        np.testing.assert_allclose(hard.values.sum(-1), there[..., 0], atol=1e-5)

    def test_what_has_no_classes_stays(self) -> None:
        for output in ("regression", "multi-label", "ranking", "sequence"):
            values = [[0.75, 0.25]] if output != "sequence" else [[[0.75, 0.25]]]
            close(hardened(labels(values, output=output), 0.1).values, values)

    def test_probabilities_only(self) -> None:
        with pytest.raises(KnowledgeError, match="expected probabilities to harden"):
            hardened(labels([[1.0, 2.0]], form="logits"), 0.1)


class TestSharpened:
    def test_era(self) -> None:
        # softmax((3/4, 1/4) / 0.1)₁ = sigmoid(5)
        hard = sharpened(labels([[0.75, 0.25]], temperature=3.0), 0.1)
        assert hard.temperature == 1.0
        close(hard.values, [[1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5))]])

    def test_multi_label(self) -> None:
        close(sharpened(labels([[0.75, 0.5]], output="multi-label"), 0.25).values, [[1 / (1 + math.exp(-2)), 0.5]])

    def test_probabilities_only(self) -> None:
        with pytest.raises(KnowledgeError, match="expected probabilities to sharpen"):
            sharpened(labels([[1.0, 2.0]], form="logits"), 0.1)
        with pytest.raises(UnsupportedError, match="sharpening of regression"):
            sharpened(labels([[1.0, 2.0]], output="regression"), 0.1)


def model(weights: Any, steps: int, scale: float) -> Parameters:
    return Parameters(
        "m",
        {"w": np.array(weights, np.float32), "steps": np.array(steps), "scale": np.array(scale, np.float32)},
    )


class TestMeanParameters:
    def test_weighted_mean_of_floats_integers_and_scalars(self) -> None:
        one = Parameters(
            "m", {"w": np.array([[1, 2]], np.float32), "steps": np.array(2), "scale": np.array(1.0, np.float32)}
        )
        two = Parameters(
            "m", {"w": np.array([[4, 8]], np.float32), "steps": np.array(6), "scale": np.array(4.0, np.float32)}
        )
        mean = mean_parameters([one, two], [1, 2])
        # w: (1 + 2·4) / 3 = 3 and (2 + 2·8) / 3 = 6; steps: (2 + 2·6) / 3 = 4.67 → 5; scale: (1 + 2·4) / 3 = 3
        assert mean.weights["w"].tolist() == [[3.0, 6.0]]
        assert mean.weights["steps"].tolist() == 5
        assert mean.weights["scale"].tolist() == 3.0
        assert mean.layout() == one.layout()
        assert all(isinstance(array, np.ndarray) for array in mean.weights.values())

    @pytest.mark.parametrize("kind", [np.float16, np.float32])
    def test_a_thousand_clients_lose_nothing(self, kind: type[np.floating]) -> None:
        one = Parameters("m", {"w": np.ones(3, dtype=kind)})
        mean = mean_parameters([one] * 1000, [7.0] * 1000)
        assert mean.weights["w"].dtype == kind
        assert mean.weights["w"].tolist() == [1.0, 1.0, 1.0]

    def test_small_differences_survive(self) -> None:
        # The sum spans 38 bits: more than float32's 24, fewer than float64's 53
        one, two = (Parameters("m", {"w": np.array([value], np.float64)}) for value in (2.0**19, 2.0**-19))
        assert mean_parameters([one, two], [1, 1]).weights["w"].tolist() == [2.0**18 + 2.0**-20]

    def test_different_models(self) -> None:
        first = Parameters("m", {"w": np.zeros(2, np.float32)})
        for other in (
            Parameters("other", {"w": np.zeros(2, np.float32)}),
            Parameters("m", {"w": np.zeros(3, np.float32)}),
            Parameters("m", {"v": np.zeros(2, np.float32)}),
            Parameters("m", {"w": np.zeros(2, np.int64)}),
        ):
            with pytest.raises(KnowledgeError, match="expected one architecture"):
                mean_parameters([first, other], [1, 1])

    def test_bad_calls(self) -> None:
        one = Parameters("m", {"w": np.zeros(2, np.float32)})
        with pytest.raises(KnowledgeError, match="expected at least one model"):
            mean_parameters([], [])
        for weights in ([1.0, 1.0], [0.0], [-1.0], [math.nan]):
            with pytest.raises(KnowledgeError, match="expected 1 finite numbers"):
                mean_parameters([one], weights)


# How far opinions lie apart -----------------------------------------------------------------------------------------


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def test_disagreement_is_the_jensen_shannon_divergence() -> None:
    one = labels([[1, 0], [0.5, 0.5], [0.75, 0.25], [1, 0]])
    other = labels([[0, 1], [0.5, 0.5], [0.25, 0.75], [1, 0]])

    apart = disagreement([one, other], space=("a", "b"))

    np.testing.assert_allclose(apart, [math.log(2), 0, math.log(2) - entropy(0.75, 0.25), 0], atol=1e-12)
    assert (disagreement([one], space=("a", "b")) == 0).all()


def test_disagreement_of_those_that_answered() -> None:
    one, other, third = (
        labels([[1, 0], [1, 0]], samples=[2, 7]),
        labels([[0, 1]], samples=[7]),
        labels([[0, 1]], samples=[2]),
    )
    fourth = labels([[0.5, 0.5]], samples=[9])

    apart = disagreement([one, other, third, one, fourth], space=("a", "b"))

    two_to_one = entropy(1 / 3, 2 / 3)
    np.testing.assert_allclose(apart, [two_to_one, two_to_one, 0], atol=1e-12)


def test_an_opinion_says_of_a_class_that_it_does_not_know_what_the_others_say() -> None:
    one, other = labels([[0.5, 0.5]]), labels([[0.25, 0.25, 0.5]], SPACE)

    apart = disagreement([one, other], space=("a", "b", "c"))

    # One becomes (0.5, 0.5, 0.5) / 1.5.
    third, mean = 1 / 3, (1 / 3 + 0.25) / 2
    wanted = entropy(mean, mean, 1 - 2 * mean) - (entropy(third, third, third) + entropy(0.25, 0.25, 0.5)) / 2
    np.testing.assert_allclose(apart, [wanted], atol=1e-7)
    exclusive = [labels([[1.0]], ["a"]), labels([[1.0]], ["b"])]
    np.testing.assert_allclose(disagreement(exclusive, space=("a", "b")), [0], atol=1e-12)


def test_disagreement_of_words_is_over_those_that_there_are() -> None:
    one = labels([[[1, 0], [1, 0], [0, 0]]], output="token-level")
    other = labels([[[1, 0], [0, 1], [0, 0]]], output="token-level")

    np.testing.assert_allclose(disagreement([one, other], space=("a", "b")), [math.log(2) / 2], atol=1e-12)


def test_disagreement_of_several_labels_is_summed_over_classes() -> None:
    one, other = (labels([values], output="multi-label") for values in ([1, 1], [0, 0]))

    np.testing.assert_allclose(disagreement([one, other], space=("a", "b")), [2 * math.log(2)], atol=1e-12)


def test_disagreement_of_raw_outputs() -> None:
    scores = [labels([values], form="logits") for values in ([5 + math.log(3), 5], [0, math.log(3)])]

    wanted = math.log(2) - entropy(0.75, 0.25)
    np.testing.assert_allclose(disagreement(scores, space=("a", "b")), [wanted], atol=1e-6)


def test_numbers_have_no_disagreement() -> None:
    numbers = [labels([[value]], ["a"], output="regression") for value in (1.5, 2.5)]
    with pytest.raises(UnsupportedError, match="entropy of regression outputs"):
        disagreement(numbers, space=("a",))
