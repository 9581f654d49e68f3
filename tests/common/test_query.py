"""Query strategies: exact choices of a small pool, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.queries.disagreement import Disagreement
from fedstill.common.queries.novelty import Novelty
from fedstill.common.queries.random import Random
from fedstill.common.queries.uncertain import Uncertain
from fedstill.common.query import Pool, QueryStrategy, by_score, check_choice, least_recent
from fedstill.common.registry import ALGORITHMS
from fedstill.common.scenario import Scenario
from fedstill.common.seeding import numpy_rng
from fedstill.server.holdings import simulated
from fedstill.simulations.compare.plan import misfit

Small = Callable[..., Scenario]

NAN = math.nan


def pool(**changes: Any) -> Pool:
    """Six samples: 0, 1 and 2 asked in round 1, 2 and 3 in round 2, 4 and 5 never."""
    labels = SoftLabels(
        "categorical",
        ("a", "b"),
        np.array([0, 1, 2, 3]),
        np.array([[0.5, 0.5], [0.9, 0.1], [0.6, 0.4], [1, 0]], dtype=np.float32),
    )
    one = Pool(
        times=np.array([1, 1, 2, 1, 0, 0]),
        last=np.array([1, 1, 2, 2, 0, 0]),
        consensus=labels,
        disagreement=np.array([0.0, 0.3, 0.1, 0.2, NAN, NAN]),
    )
    return replace(one, **changes)


def empty(size: int) -> Pool:
    return Pool(np.zeros(size, np.int64), np.zeros(size, np.int64), None, np.full(size, NAN))


def test_entropy_of_the_consensus_in_nats() -> None:
    wanted = [math.log(2), 0.325083, 0.673012, 0, NAN, NAN]
    np.testing.assert_allclose(pool().entropies(), wanted, atol=1e-6)
    np.testing.assert_array_equal(empty(2).entropies(), [NAN, NAN])


def test_raw_outputs_are_softened_first() -> None:
    scores = SoftLabels(
        "categorical", ("a", "b"), np.array([3]), np.array([[math.log(9) + 5, 5]], np.float32), form="logits"
    )
    np.testing.assert_allclose(pool(consensus=scores).entropies(), [NAN, NAN, NAN, 0.325083, NAN, NAN], atol=1e-5)


def test_uncertain_takes_the_highest_entropy_then_the_oldest() -> None:
    # ln 2 and 0.67 are highest; of 1, 3, 4, 5 the latter two were never asked.
    assert sorted(Uncertain().choose(pool(), 4, numpy_rng(1))) == [0, 2, 4, 5]
    assert sorted(Uncertain().choose(pool(), 5, numpy_rng(1))) == [0, 1, 2, 4, 5]
    assert 0 in Uncertain().choose(pool(last=np.ones(6, np.int64)), 2, numpy_rng(1))


def test_disagreement_takes_the_widest_apart_then_the_oldest() -> None:
    assert sorted(Disagreement().choose(pool(), 4, numpy_rng(1))) == [1, 3, 4, 5]
    assert sorted(Disagreement().choose(pool(), 5, numpy_rng(1))) == [0, 1, 3, 4, 5]


def test_novelty_takes_the_oldest_of_these_the_least_often_asked() -> None:
    assert sorted(Novelty().choose(pool(), 2, numpy_rng(1))) == [4, 5]
    assert sorted(Novelty().choose(pool(), 4, numpy_rng(1))) == [0, 1, 4, 5]
    assert sorted(Novelty().choose(pool(), 5, numpy_rng(1))) == [0, 1, 3, 4, 5]
    # One of the two that were never asked, either.
    assert {int(Novelty().choose(pool(), 1, numpy_rng(seed))[0]) for seed in range(20)} == {4, 5}


def test_order_by_age() -> None:
    order = least_recent(pool(), numpy_rng(1)).tolist()
    assert [set(order[:2]), set(order[2:4]), order[4:]] == [{4, 5}, {0, 1}, [3, 2]]


def test_a_single_sample_goes_by_age_and_equal_scores_by_chance() -> None:
    assert by_score(pool(), np.array([9.0, 9, 9, 9, 1, NAN]), 1, numpy_rng(1))[0] in (4, 5)
    firsts = {int(by_score(pool(), np.array([9.0, 9, 1, 1, 1, 1]), 2, numpy_rng(seed))[0]) for seed in range(20)}
    assert firsts == {0, 1}


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 30), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_nobody_starves(size: int, share: float, seed: int) -> None:
    """Even where the score never changes, every sample has its turn."""
    count = max(1, min(size - 1, round(share * size)))
    scores = numpy_rng(seed).random(size)
    times, last = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for step in range(1, 1 + math.ceil(size / math.ceil(count / 2))):
        chosen = by_score(Pool(times, last, None, scores), scores, count, numpy_rng(seed, step))
        times[chosen] += 1
        last[chosen] = step
    assert times.min() >= 1


def test_random_is_the_draw_of_a_proxy_set(small: Small) -> None:
    proxy = simulated(small(), None)["wine"].proxy

    def choose(count: int, chance: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        return Random().choose(pool(times=np.arange(len(proxy))), count, chance)

    assert proxy.draw(6, seed=1, choose=choose).tolist() == [3, 5, 9, 23, 28, 33]


# What has no meaning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "output", "exchange", "message"),
    [
        (
            "uncertain",
            "regression",
            "soft-labels",
            "'uncertain' with output kind 'regression': expected one of ",
        ),
        ("disagreement", "sequence", "soft-labels", r"expected one of categorical, .* \(choose 'random' or 'novelty'"),
        ("uncertain", "categorical", "relations", "exchanges relations: expected one that exchanges soft-labels"),
        ("novelty", "categorical", "parameters", "expected one that exchanges features or relations or soft-labels"),
        ("noveltie", "categorical", "soft-labels", "did you mean 'novelty'?"),
    ],
)
def test_refused(choose: str, output: str, exchange: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_choice("wine", choose, output=output, exchange=exchange)


@pytest.mark.parametrize("strategy", [Random, Novelty])
def test_for_every_output_kind(strategy: type[QueryStrategy]) -> None:
    for output in ("regression", "sequence", "categorical"):
        check_choice("wine", strategy.name, output=output, exchange="soft-labels")


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ({"samples": 40, "choose": "novelty"}, "'novelty' with all 40 samples in every round: expected fewer"),
        ({"samples": 40, "per-round": 40, "choose": "novelty"}, "set proxy.per-round"),
        (
            {"samples": 40, "per-round": 5, "choose": "novelty", "shared": "x"},
            "proxy.shared='x': expected 'random'",
        ),
        ({"samples": 40, "per-round": 5, "choose": "new"}, "expected a known query strategy"),
    ],
)
def test_a_scenario_refuses(small: Small, proxy: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small({"tasks.wine.proxy": proxy})


def test_a_comparison_says_which_methods_do_not_fit(small: Small) -> None:
    one = small({"tasks.wine.models": ["mlp-small"], "tasks.wine.proxy": {"per-round": 5, "choose": "uncertain"}})
    reasons = {name: misfit(one, ALGORITHMS.get(name)) for name in ("fedavg", "dsfl", "local", "central")}
    assert "exchanges parameters" in reasons.pop("fedavg")
    assert set(reasons.values()) == {""}
