"""One-shot federated learning: whom the ensemble is made of, what a client keeps aside, and that it speaks once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, tensor

from fedstill.common.algorithms.one_shot import OneShot
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, KnowledgeError, Reason
from fedstill.common.knowledge import Contribution, SoftLabels, knowledge_from_parts
from fedstill.common.learning import Training
from fedstill.common.sides import Client, Server
from fedstill.common.task import Examples, TaskSpec

SPEC = TaskSpec("t", "categorical", "tabular", ("a", "b"), (2,))


def side(weight: Any = ((0.0, 0.0), (0.0, 0.0)), **others: Any) -> dict[str, Any]:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(tensor(weight))
    return {
        "spec": SPEC,
        "model_name": "linear",
        "model": model,
        "proxy": ProxySet(tensor([[1.0, 0.0], [0.0, 1.0]])),
        "samples": np.arange(2),
        # One step of no size: what comes out is what went in.
        "training": Training(epochs=1, batch_size=8, learning_rate=1e-30, optimizer="sgd"),
        "seed": 1,
        "round": 1,
        **others,
    }


def answer(share: float, *, name: str, examples: int = 1, score: float = 1.0) -> Contribution:
    values = np.array([[share, 1 - share], [1 - share, share]], np.float32)
    return Contribution(name, examples, SoftLabels("categorical", ("a", "b"), np.arange(2), values, score=score))


ANSWERS = [
    answer(1.0, name="anna", examples=5, score=0.2),
    answer(0.5, name="bob", examples=9, score=0.9),
    answer(0.0, name="cleo", examples=7, score=0.4),
]


def first(method: OneShot, answers: list[Contribution] = ANSWERS, seed: int = 1) -> float:
    return float(method.merge(Server(**side(seed=seed)), answers).values[0, 0])


def test_the_best_on_their_own_validation_make_the_ensemble() -> None:
    # bob and cleo: (½ + 0) / 2; then bob alone; then everybody: (1 + ½ + 0) / 3.
    assert first(OneShot(members=2)) == pytest.approx(0.25)
    assert first(OneShot(members=1)) == pytest.approx(0.5)
    assert first(OneShot()) == pytest.approx(0.5)
    alike = [answer(share, name=name) for name, share in (("cleo", 0.0), ("bob", 0.5), ("anna", 1.0))]
    assert first(OneShot(members=1), alike) == 1.0  # of equal ones, the first by name


def test_those_with_the_most_examples() -> None:
    assert first(OneShot(selection="examples", members=2)) == pytest.approx(0.25)
    many = [replace(ANSWERS[0], examples=10), *ANSWERS[1:]]
    assert first(OneShot(selection="examples", members=1), many) == 1.0


def test_any_of_them() -> None:
    drawn = [first(OneShot(selection="random", members=1), seed=seed) for seed in range(20)]
    assert set(drawn) == {0.0, 0.5, 1.0}
    assert drawn == [first(OneShot(selection="random", members=1), ANSWERS[::-1], seed) for seed in range(20)]


def test_a_client_keeps_a_part_aside_and_tells_its_likelihood() -> None:
    inputs = tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 7)
    # Scores (ln 3, 0) whatever it sees: each example of class a has ¾, whichever are kept.
    told = OneShot(validation=0.35).local(
        Client(
            **side(((math.log(3), math.log(3)), (0.0, 0.0))),
            name="anna",
            private=Examples(inputs, torch.zeros(10, dtype=torch.int64)),
        )
    )
    assert told.score == pytest.approx(0.75, rel=1e-5)
    np.testing.assert_allclose(told.values, [[0.75, 0.25]] * 2, rtol=1e-5)


@pytest.mark.parametrize(("count", "trained"), [(10, 8), (4, 3), (2, 1), (1, 1)])
def test_how_many_it_trains_on(count: int, trained: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Examples] = []

    def train_on(_: Client, examples: Examples, loss: Any = None) -> float:
        seen.append(examples)
        return 0.0

    monkeypatch.setattr(Client, "train_on", train_on)
    private = Examples(torch.arange(2.0 * count).reshape(count, 2), torch.zeros(count, dtype=torch.int64))
    told = OneShot().local(Client(**side(), name="anna", private=private))
    assert len({tuple(row.tolist()) for row in seen[0].inputs}) == trained
    assert told.score == (0.0 if count == 1 else 0.5)
    seen.clear()
    assert OneShot(selection="examples").local(Client(**side(), name="anna", private=private)).score == 1.0
    assert [len(examples) for examples in seen] == [count]


def test_a_score_travels_and_is_checked() -> None:
    labels = ANSWERS[0].knowledge
    assert isinstance(labels, SoftLabels)
    back = knowledge_from_parts("soft-labels", labels.header(), labels.arrays())
    assert isinstance(back, SoftLabels)
    assert back.score == 0.2
    assert "score" not in replace(labels, score=1.0).header()
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(KnowledgeError, match="score=") as caught:
            replace(labels, score=bad)
        assert caught.value.reason is Reason.RANGE
    with pytest.raises(KnowledgeError, match="score='much': expected a number"):
        knowledge_from_parts("soft-labels", {**labels.header(), "score": "much"}, labels.arrays())


def test_more_than_one_round_is_refused(small: Any) -> None:
    with pytest.raises(ConfigError, match=r"rounds\.count=2 with algorithm 'one-shot': expected 1.*set rounds\.count"):
        small({"algorithm": {"name": "one-shot"}})


def test_bad_parts_are_refused() -> None:
    for bad in (0.0, 1.0):
        with pytest.raises(ConfigError, match='selection = "examples" keeps nothing aside'):
            OneShot(validation=bad)


def test_a_run_with_absent_clients_and_own_classes(play_small: Any) -> None:
    changes = {
        "algorithm": {"name": "one-shot", "members": 2},
        "rounds.count": 1,
        "clients.cohort": 0.75,
        "codec": "fp16",
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }
    played = play_small(changes)
    assert [record["rejected"] for record in played.records] == [[]] * 3
    assert [len(record["accepted"]) for record in played.records] == [4, 3, 4]
    # Who was not asked learns from the ensemble as well.
    assert all("final.accuracy" in one for one in played.records[-1]["tasks"]["wine"]["clients"].values())
