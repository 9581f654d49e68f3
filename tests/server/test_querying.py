"""Which proxy samples a run asks about, strategy by strategy, and what it remembers of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedstill.common import records, registry
from fedstill.common.errors import ConfigError, QuorumError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import ROUND
from fedstill.common.query import Ids, Pool
from fedstill.common.registry import QUERIES
from fedstill.common.scenario import Scenario
from fedstill.common.seeding import derive
from fedstill.server import querying
from fedstill.server.holdings import simulated

Small = Callable[..., Scenario]
Play = Callable[..., Any]
Samples = dict[int, list[int]]

P, COUNT, ROUNDS = 40, 12, 4


def plan(choose: str, **changes: Any) -> dict[str, Any]:
    proxy = {"samples": P, "per-round": COUNT, "choose": choose}
    return {"tasks.wine.proxy": proxy, "rounds.count": ROUNDS, "algorithm.name": "fedstill", **changes}


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


def noting(asked: Samples) -> Callable[..., Message]:
    """Notes what every round asks about."""

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND:
            asked[round_of(message)] = records.read_order(message.content).tasks["wine"].samples.tolist()
        return inner(message, context)

    return tamper


def pool_of(state: Any) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = state.tasks["wine"].pool
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(value.numpy(), other[key].numpy(), equal_nan=value.is_floating_point())
        for key, value in one.items()
    )


@pytest.mark.parametrize("method", ["fedstill", "fedmd", "dsfl", "kt-pfl"])
@pytest.mark.parametrize("choose", QUERIES.names())
def test_a_run_with_every_strategy(choose: str, method: str, play_small: Play) -> None:
    asked: Samples = {}

    played = play_small(plan(choose, **{"algorithm.name": method}), tamper=noting(asked))

    assert list(asked) == [1, 2, 3, 4]
    for samples in asked.values():
        assert len(samples) == COUNT
        assert samples == sorted(set(samples))
        assert set(samples) <= set(range(P))
    assert all(record["rejected"] == [] for record in played.records)
    pool = pool_of(played.states[-1])
    if not QUERIES.get(choose).needs:
        assert pool == {}
        return
    times = [sum(sample in samples for samples in asked.values()) for sample in range(P)]
    assert pool["times"].tolist() == times
    last = [max((step for step, samples in asked.items() if sample in samples), default=0) for sample in range(P)]
    assert pool["last"].tolist() == last
    # Half of each later round are new ones, or all.
    assert sum(number > 0 for number in times) == (P if choose == "novelty" else COUNT + (ROUNDS - 1) * COUNT // 2)
    if choose == "uncertain":
        assert pool["labels.samples"].tolist() == np.flatnonzero(times).tolist()
    if choose == "disagreement":
        assert torch.isfinite(pool["disagreement"]).tolist() == [number > 0 for number in times]


def test_random_is_what_it_was(play_small: Play, small: Small) -> None:
    """The same samples and the same bytes as before there was a choice, and nothing is remembered."""
    told, untold = Samples(), Samples()
    explicit = play_small(plan("random"), tamper=noting(told), name="a")
    bare = {"tasks.wine.proxy": {"samples": P, "per-round": COUNT}, "rounds.count": ROUNDS}
    default = play_small(bare | {"algorithm.name": "fedstill"}, tamper=noting(untold), name="b")

    proxy = simulated(small(), None)["wine"].proxy
    drawn = {step: proxy.draw(COUNT, seed=derive(1, "samples", "wine", step)).tolist() for step in range(1, ROUNDS + 1)}
    assert told == untold == drawn
    assert drawn[1] == [1, 2, 8, 9, 13, 15, 16, 23, 25, 28, 31, 36]
    assert [record["bytes"] for record in explicit.records] == [record["bytes"] for record in default.records]


def test_a_choice_goes_by_what_is_known(play_small: Play) -> None:
    """Half of round 2 are the widest apart of round 1; nothing new is asked while a sample is left that never was."""
    asked: Samples = {}
    played = play_small(plan("disagreement"), tamper=noting(asked))

    apart = pool_of(played.states[1])["disagreement"].numpy()
    first, second = set(asked[1]), set(asked[2])
    widest = sorted(first, key=lambda sample: -apart[sample])[: COUNT // 2]
    assert first & second == set(widest)
    assert len(second - first) == COUNT - COUNT // 2


def test_uncertain_asks_again_what_the_consensus_is_unsure_of(play_small: Play) -> None:
    asked: Samples = {}
    played = play_small(plan("uncertain"), tamper=noting(asked))

    consensus = played.states[1].tasks["wine"].knowledge
    assert isinstance(consensus, SoftLabels)
    entropies = -(consensus.values * np.log(consensus.values.clip(1e-30))).sum(1)
    unsure = consensus.samples[np.argsort(-entropies)[: COUNT // 2]]
    assert set(asked[1]) & set(asked[2]) == set(unsure.tolist())


@pytest.mark.parametrize("choose", QUERIES.names())
def test_an_interrupted_run_goes_on_with_the_same_numbers(choose: str, play_small: Play) -> None:
    changes = plan(choose, **{"clients.cohort": 0.75, "clients.quorum": 1.0, "rounds.attempts": 1})
    down, asked, again = True, Samples(), Samples()

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if down and message.metadata.message_type == ROUND and round_of(message) == 3:
            raise RuntimeError("no power")
        return noting(again)(message, context, inner)

    clean = play_small(changes, tamper=noting(asked), name="one")  # a name as long as the other's: bytes are compared
    with pytest.raises(QuorumError):
        play_small(changes, tamper=tamper)
    down = False
    resumed = play_small(changes, tamper=tamper)

    assert [state.step for state in resumed.states] == [3, 4, 5]
    assert again == asked
    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]
    assert [record["bytes"] for record in resumed.records] == [record["bytes"] for record in clean.records]
    assert same(pool_of(resumed.states[-1]), pool_of(clean.states[-1]))


def test_an_abandoned_attempt_asks_the_same_again_and_counts_once(play_small: Play) -> None:
    tried: dict[int, set[tuple[int, ...]]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND:
            samples = records.read_order(message.content).tasks["wine"].samples
            tried.setdefault(round_of(message), set()).add(tuple(samples.tolist()))
            if round_of(message) == 2 and str(message.content.config_records["fedstill"]["attempt"]) == "1":
                raise RuntimeError("no power")
        return inner(message, context)

    played = play_small(plan("novelty"), tamper=tamper)

    assert len(played.records[2]["abandoned"]) == 1
    assert [len(samples) for samples in tried.values()] == [1] * ROUNDS
    assert pool_of(played.states[-1])["times"].sum() == ROUNDS * COUNT


def test_a_sample_without_an_answer_was_not_asked(play_small: Play) -> None:
    """A method that keeps labels asks about those of the chosen samples only that it has none of."""
    played = play_small(plan("uncertain", **{"algorithm.name": "scarlet"}))

    memory = played.states[-1].tasks["wine"].memory
    (labelled,) = (value for key, value in memory.items() if key.endswith("samples"))
    (rounds,) = (value for key, value in memory.items() if key.endswith("rounds"))
    pool = querying.pool_of(pool_of(played.states[-1]), P)
    assert np.flatnonzero(pool.times).tolist() == labelled.tolist()
    assert pool.last[labelled.numpy()].tolist() == rounds.tolist()
    assert pool.times.sum() < ROUNDS * COUNT


def test_label_spaces_of_their_own(play_small: Play) -> None:
    own = {"tasks.wine.label-space": "own", "tasks.wine.partition": {"kind": "pathological", "minimum": 1}}
    for choose in ("uncertain", "disagreement"):
        played = play_small(plan(choose, **own), name=choose)
        pool = querying.pool_of(pool_of(played.states[-1]), P)
        known = pool.entropies() if choose == "uncertain" else pool.disagreement
        assert np.isfinite(known).tolist() == (pool.times > 0).tolist()


def test_each_task_has_a_strategy_of_its_own(play_small: Play) -> None:
    other = {
        "kind": "tabular",
        "source": "breast-cancer",
        "models": ["mlp-small"],
        "proxy": {"samples": 30, "per-round": 10},
    }
    played = play_small(plan("disagreement", **{"tasks.other": other, "rounds.count": 2}))

    tasks = played.states[-1].tasks
    assert tasks["wine"].pool["times"].sum() == 2 * COUNT
    assert tasks["other"].pool == {}


@dataclass(frozen=True, slots=True)
class Careless:
    """Chooses one sample again and again."""

    name: ClassVar[str] = "careless"
    paper: ClassVar[str] = ""
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    needs: ClassVar[frozenset[str]] = frozenset()

    def choose(self, pool: Pool, count: int, chance: np.random.Generator) -> Ids:
        return np.zeros(count, dtype=np.int64)


def test_a_strategy_that_does_not_do_what_it_has_to(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(simulated(small(), None)["wine"], per_round=5, choose="careless")
    monkeypatch.setattr(registry.Registry, "get", lambda self, name: Careless)
    with pytest.raises(ConfigError, match=r"5 samples, 1 of them different, .* 'careless': expected 5 different ones"):
        querying.chosen(own, {}, seed=1)
