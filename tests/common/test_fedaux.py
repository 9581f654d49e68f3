"""FedAUX on models of a few numbers: the ensemble by hand, scores that are made once, and what may travel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fedstill.common.algorithms.fedaux import FedAUX, _ensemble
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, KnowledgeError, Reason, UnsupportedError
from fedstill.common.knowledge import Contribution, Parameters, knowledge_from_parts
from fedstill.common.learning import Training
from fedstill.common.messages import ROUND
from fedstill.common.models import build_model
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Client, Server
from fedstill.common.task import Examples, TaskSpec

SPEC = TaskSpec("t", "categorical", "tabular", ("a", "b"), (2,))
PROXY = ProxySet(torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]))  # the first is a negative
LN3 = math.log(3)


def server(samples: Any = (0, 1, 2)) -> Server:
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    return Server(
        spec=SPEC,
        model_name="linear",
        model=model,
        proxy=PROXY,
        samples=np.array(samples),
        training=Training(batch_size=8, learning_rate=1.0, optimizer="sgd"),
        seed=1,
        round=1,
    )


def answer(weight: Any, scores: Any) -> Parameters:
    beside = {"scores": np.array(scores, np.float32)}
    return Parameters("linear", {"weight": np.array(weight, np.float32)}, beside)


FIRST = answer([[LN3, LN3], [0, 0]], [1, 0.75, 0])
SECOND = answer([[0, 0], [LN3, 2 * LN3]], [0, 0.25, 0.5])


def test_a_client_counts_where_it_is_certain() -> None:
    found = _ensemble(server(), [FIRST, SECOND], np.array([1, 2]))
    # Sample 1: ¾ (ln 3, 0) + ¼ (0, ln 3), odds of √3.  Sample 2: the second alone, (0, 2 ln 3), odds of 1 to 9.
    root = math.sqrt(3)
    np.testing.assert_allclose(found.values, [[root / (1 + root), 1 / (1 + root)], [0.1, 0.9]], atol=1e-6)
    assert found.samples.tolist() == [1, 2]


def test_where_nobody_is_certain_all_count_alike() -> None:
    nobody = [answer(one.weights["weight"], [0, 0, 0]) for one in (FIRST, SECOND)]
    found = _ensemble(server(), nobody, np.array([1, 2]))
    root = math.sqrt(3)
    np.testing.assert_allclose(found.values, [[0.5, 0.5], [1 / (1 + root), root / (1 + root)]], atol=1e-6)


def test_scores_out_of_range_are_cut() -> None:
    loud = answer(FIRST.weights["weight"], [0, 1e6, -1e6])
    sure = answer(FIRST.weights["weight"], [0, 1, 0])
    one, other = (_ensemble(server(), [first, SECOND], np.array([1, 2])).values for first in (loud, sure))
    np.testing.assert_array_equal(one, other)


def test_the_average_takes_a_step_towards_the_ensemble() -> None:
    side = server()
    told = [
        Contribution("a", 1, answer([[4, 0], [0, 0]], [0, 1, 1])),
        Contribution("b", 3, answer([[0] * 2] * 2, [0] * 3)),
    ]
    merged = FedAUX(distil_epochs=1).merge(side, told)
    # The average is (1, 0), (0, 0); on sample 1 the ensemble is softmax(4, 0) where the average says softmax(1, 0).
    step = (1 / (1 + math.exp(-4)) - 1 / (1 + math.exp(-1))) / 2
    np.testing.assert_allclose(merged.weights["weight"].astype(float), [[1 + step, 0], [-step, 0]], atol=1e-6)
    assert merged.beside == {}


def test_a_round_of_negatives_alone_is_a_plain_average() -> None:
    told = [Contribution(name, 1, answer(one.weights["weight"], [0.5])) for name, one in (("a", FIRST), ("b", SECOND))]
    merged = FedAUX().merge(server(samples=[0]), told)
    np.testing.assert_allclose(merged.weights["weight"].astype(float), [[LN3 / 2, LN3 / 2], [LN3 / 2, LN3]], rtol=1e-6)


def test_weights_without_scores_are_refused() -> None:
    with pytest.raises(KnowledgeError, match=r"weights beside \[\]: expected 'scores'"):
        FedAUX().merge(server(), [Contribution("a", 1, Parameters("linear", FIRST.weights))])


def test_what_is_beside_the_weights_travels() -> None:
    back = knowledge_from_parts("parameters", FIRST.header(), FIRST.arrays())
    assert isinstance(back, Parameters)
    assert back.weights.keys() == {"weight"}
    assert back.beside["scores"].tolist() == [1, 0.75, 0]
    assert back.layout().keys() == {"weight"}
    with pytest.raises(KnowledgeError, match=r"non-finite weight 'beside\.scores'"):
        answer([[1, 1], [1, 1]], [0, math.nan, 0])


def client(samples: Any, *, lifted: float) -> Client:
    """Of private data that lies to one side of the public data."""
    rng = torch_rng(4)
    inputs = torch.randn(60, 2, generator=rng) + lifted
    return Client(
        spec=SPEC,
        model_name="mlp-small",
        model=build_model("mlp-small", SPEC, seed=1),
        proxy=ProxySet(torch.cat([torch.randn(50, 2, generator=rng) - 3, torch.randn(50, 2, generator=rng) + 3])),
        samples=np.array(samples),
        training=Training(epochs=1, batch_size=16),
        seed=2,
        round=1,
        name="anna",
        private=Examples(inputs, (inputs[:, 0] > inputs[:, 1]).long()),
    )


def test_scores_tell_what_is_like_the_private_data() -> None:
    side = client(range(100), lifted=3)
    told = FedAUX(epsilon=50.0).local(side).beside["scores"]
    assert told.shape == (100,)
    assert told[50:].mean() > 0.7
    assert told[:50].mean() < 0.3
    # With little ε they tell next to nothing: the noise is larger than any regression.
    noisy = FedAUX(epsilon=0.01).local(client(range(100), lifted=3)).beside["scores"]
    assert not np.allclose(noisy, told, atol=0.1)


def test_scores_are_made_once() -> None:
    """Each time costs another ε: later rounds send what the first has made, of their own samples."""
    side, method = client(range(0, 100, 2), lifted=3), FedAUX()
    first = method.local(side).beside["scores"]
    side.round, side.seed, side.samples = 2, 99, np.arange(0, 100, 4)
    np.testing.assert_array_equal(method.local(side).beside["scores"], first[::2])


def test_too_much_to_call_it_private() -> None:
    for epsilon, delta in ((101.0, 1e-5), (0.1, 1.0)):
        with pytest.raises(ConfigError, match="expected epsilon <= 100 and delta < 1"):
            FedAUX(epsilon=epsilon, delta=delta)


# Runs ----------------------------------------------------------------------------------------------------------------


def plan(**changes: Any) -> dict[str, Any]:
    return {"algorithm": {"name": "fedaux"}, "tasks.wine.models": ["mlp-small"], **changes}


@pytest.mark.parametrize("spoil", [None, np.zeros(3, np.float32), np.zeros(40)])
def test_answers_with_other_things_beside_the_weights_do_not_count(play_small: Any, spoil: Any) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND and context.node_config["partition-id"] == 1:
            arrays = reply.content.array_records["knowledge.wine"]
            del arrays["beside.scores"]
            if spoil is not None:
                arrays["beside.scores"] = Array(spoil)
        return reply

    played = play_small(plan(), tamper=tamper)
    rejected = [record["rejected"] for record in played.records]
    assert [len(one) for one in rejected] == [0, 1, 1, 0]
    assert {one["reason"] for one in rejected[1]} == {str(Reason.SHAPE)}


def test_a_model_without_features_does_not_begin(play_small: Any) -> None:
    with pytest.raises(UnsupportedError, match="choose a model with hidden layers"):
        play_small(plan(**{"tasks.wine.models": ["linear-softmax"]}))


def test_samples_of_a_round_are_scored(play_small: Any) -> None:
    played = play_small(plan(**{"tasks.wine.proxy": {"samples": 40, "per-round": 16}, "clients.cohort": 0.5}))
    assert [record["rejected"] for record in played.records] == [[]] * 4
