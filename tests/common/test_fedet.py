"""Fed-ET: the ensemble's labels by hand, heads that are exchanged, and whose weights the server takes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, tensor

from fedstill.common.algorithms.fedet import FedET, ensemble_labels
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import Reason, UnsupportedError
from fedstill.common.knowledge import Contribution, Parameters
from fedstill.common.learning import Training, predict
from fedstill.common.messages import ROUND
from fedstill.common.models import build_model
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Client, ClientInfo, Server
from fedstill.common.task import Examples, TaskSpec
from fedstill.server.roster import _check_names

SPEC = TaskSpec("t", "categorical", "tabular", ("a", "b"), (3,))
SMALL = ("mlp-small", "autoencoder-small", "mlp-small")
HEAD = ("head.weight", "head.bias")


def server(**others: Any) -> Server:
    told: dict[str, Any] = {
        "spec": SPEC,
        "model_name": "mlp-small",
        "model": build_model("mlp-small", SPEC, seed=7),
        "proxy": ProxySet(torch.randn(20, 3, generator=torch_rng(1))),
        "samples": np.arange(20),
        "training": Training(batch_size=10, learning_rate=0.05),
        "seed": 3,
        "round": 1,
        "clients": tuple(ClientInfo(f"client-{n}", name, 1, 10, ("a", "b")) for n, name in enumerate(SMALL)),
    }
    return Server(**told | others)


def answer(number: int, seed: int, examples: int = 10) -> Contribution:
    model = build_model(SMALL[number], SPEC, seed=seed)
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    return Contribution(f"client-{number}", examples, Parameters(SMALL[number], weights))


def test_who_is_sure_counts_more() -> None:
    # Variances over two classes are (half the difference)²: 4, 1 and 1, so the weights are ⅔, ⅙ and ⅙.
    scores = tensor([[[4.0, 0.0]], [[0.0, 2.0]], [[1.0, 3.0]]])
    labels, others, there = ensemble_labels(scores)
    # ⅔ (4, 0) + ⅙ (0, 2) + ⅙ (1, 3) = (2.83, 0.83): class a. The two that say b have ½ each: (½, 2½).
    assert labels.tolist() == [0]
    np.testing.assert_allclose(others, [[1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)]], rtol=1e-5)
    assert there.tolist() == [1]


def test_where_all_agree_nobody_differs() -> None:
    labels, others, there = ensemble_labels(tensor([[[0.0, 1.0]], [[0.0, 3.0]]]))
    assert (labels.tolist(), there.tolist()) == ([1], [0])
    assert torch.isfinite(others).all()


def test_models_that_know_nothing_count_alike() -> None:
    labels, others, there = ensemble_labels(torch.zeros(3, 2, 4))
    assert (labels.tolist(), there.tolist()) == ([0, 0], [0, 0])
    assert torch.isfinite(others).all()


def test_the_large_model_starts_from_the_mean_of_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []

    def fit(side: Server, *_: Any, **__: Any) -> float:
        seen.append({key: value.clone() for key, value in side.model.state_dict().items()})
        return 0.0

    monkeypatch.setattr(Server, "fit", fit)
    side, answers = server(), [answer(0, 1), answer(1, 2), answer(2, 3)]
    body = build_model("mlp-small", SPEC, seed=7).state_dict()
    merged = FedET().merge(side, answers)
    for key in HEAD:
        mean = sum(np.asarray(one.knowledge.arrays()[key], np.float64) for one in answers) / 3
        np.testing.assert_allclose(seen[0][key], mean, rtol=1e-5, atol=1e-7)
        # It goes back to the small models of both architectures.
        for told in merged.own.values():
            np.testing.assert_array_equal(told.arrays()[key], seen[0][key])
    assert all(torch.equal(seen[0][key], value) for key, value in body.items() if key not in HEAD)


def test_small_models_are_averaged_by_architecture() -> None:
    answers = [answer(0, 1, examples=1), answer(1, 2), answer(2, 3, examples=99)]
    merged = FedET().merge(server(), answers)
    one, other, third = (merged.own[f"client-{number}"] for number in range(3))
    assert one is third
    assert isinstance(one, Parameters)
    assert isinstance(other, Parameters)
    assert (one.model, other.model) == ("mlp-small", "autoencoder-small")
    for key in one.weights.keys() - set(HEAD):
        mean = sum(answers[place].knowledge.arrays()[key].astype(np.float64) for place in (0, 2)) / 2
        np.testing.assert_allclose(one.weights[key].astype(float), mean, rtol=1e-5, atol=1e-7)
    for key in other.weights.keys() - set(HEAD):
        np.testing.assert_array_equal(other.weights[key], answers[1].knowledge.arrays()[key])


def test_an_architecture_that_nobody_brought_stays_and_gets_the_new_head() -> None:
    side, method = server(), FedET()
    before = method.start(side).own["client-1"].arrays()
    after = method.merge(side, [answer(0, 1), answer(2, 3)]).own["client-1"].arrays()
    for key, array in before.items():
        assert np.array_equal(array, after[key]) == (key not in HEAD)
        if key in HEAD:
            np.testing.assert_array_equal(after[key], side.model.state_dict()[key])


def test_all_clients_of_an_architecture_start_alike() -> None:
    first = FedET().start(server())
    assert first.own["client-0"] is first.own["client-2"]
    assert first.own["client-1"].header() == {"model": "autoencoder-small"}


def test_the_large_model_learns_what_the_ensemble_says() -> None:
    side, answers = server(), [answer(0, 1), answer(1, 2), answer(2, 3)]
    scores = torch.stack(
        [
            predict(build_model(SMALL[number], SPEC, seed=number + 1), side.proxy.inputs, training=side.training)
            for number in range(3)
        ]
    )
    FedET(distil_epochs=40).merge(side, answers)
    agreed = side.predict(side.proxy.inputs).argmax(-1) == ensemble_labels(scores)[0]
    assert agreed.float().mean() > 0.9


def test_a_client_takes_the_small_model_and_answers_with_it() -> None:
    private = Examples(torch.randn(10, 3, generator=torch_rng(2)), torch.arange(10) % 2)
    student = Client(
        spec=SPEC,
        model_name="autoencoder-small",
        model=build_model("autoencoder-small", SPEC, seed=9),
        proxy=ProxySet(torch.zeros(1, 3)),
        samples=np.arange(1),
        training=Training(epochs=1),
        seed=1,
        round=1,
        name="client-1",
        private=private,
    )
    method = FedET()
    told = method.start(server()).own["client-1"]
    method.absorb(student, told)
    assert all(np.array_equal(value, told.arrays()[key]) for key, value in student.model.state_dict().items())
    assert method.local(student).model == "autoencoder-small"


# Runs ----------------------------------------------------------------------------------------------------------------


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "algorithm": {"name": "fedet"},
        "tasks.wine.models": ["autoencoder-small", "mlp-small"],
        "tasks.wine.teacher": "mlp-small",
        **changes,
    }


def test_last_layers_of_several_widths_do_not_begin(play_small: Any) -> None:
    message = r"mlp-medium \(200\), mlp-small \(64\) for task 'wine': expected last layers that read as many"
    for changes in ({"tasks.wine.models": ["mlp-small", "mlp-medium"]}, {"tasks.wine.teacher": "mlp-medium"}):
        with pytest.raises(UnsupportedError, match=message):
            play_small(plan(**changes), name=next(iter(changes)))


@pytest.mark.parametrize("name", ["hf-somewhere", "unheard-of", "cnn-small"])
def test_a_model_that_the_server_would_not_build(name: str) -> None:
    """Neither one that it does not know, nor one from a folder that a client names."""
    own: Any = SimpleNamespace(spec=SPEC)
    info = ClientInfo("client-0", name, 1, 10, ("a", "b"))
    with pytest.raises(UnsupportedError, match=f"model '{name}' of client-0 for task 'wine'"):
        _check_names("wine", own, [info])
    _check_names("wine", own, [ClientInfo("client-0", "mlp-small", 1, 10, ("a", "b"))])


def test_models_without_a_body_do_not_begin(play_small: Any) -> None:
    with pytest.raises(UnsupportedError, match="linear-softmax"):
        play_small(plan(**{"tasks.wine.models": ["linear-softmax", "mlp-small"]}))


def test_weights_of_another_kind_of_client_do_not_count(play_small: Any) -> None:
    """A client whose model is of one kind sends weights of the other, which the server knows as well."""
    kept: list[RecordDict] = []

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND:
            if context.node_config["partition-id"] == 0:
                kept.append(reply.content)
            if context.node_config["partition-id"] == 1:
                for part in ("knowledge.wine", "task.wine"):
                    reply.content[part] = kept[-1][part]
        return reply

    played = play_small(plan(), tamper=tamper)
    rejected = [record["rejected"] for record in played.records]
    assert [len(one) for one in rejected] == [0, 1, 1, 0]
    assert rejected[1][0]["reason"] in {str(Reason.SHAPE), str(Reason.KIND)}


def test_each_client_is_sent_its_own_kind_alone(play_small: Any) -> None:
    played = play_small(plan())
    own = played.states[-1].tasks["wine"].personal
    assert {name: told.model for name, told in own.items()} == {
        "client-0": "autoencoder-small",
        "client-1": "mlp-small",
        "client-2": "autoencoder-small",
        "client-3": "mlp-small",
    }
    assert own["client-0"] is own["client-2"]
