"""The multi-task teacher: one encoder for each modality, one head for each task, weights learnt from uncertainty."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import DataError, UnsupportedError
from fedstill.common.joint import Part, fit_jointly
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.network import Network
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Server
from fedstill.common.task import TaskSpec
from fedstill.server.teacher.multitask import Multitask, groups
from fedstill.server.teacher.pretrained import save_weights

PROXY = ProxySet(torch.randn(40, 4, generator=torch_rng(0, "proxy")))


def server(name: str, classes: tuple[str, ...], *, model: str = "mlp-small", width: int = 4, seed: int = 1) -> Server:
    spec = TaskSpec(name, "categorical", "tabular", classes, (width,))
    return Server(
        spec=spec,
        model_name=model,
        model=build_model(model, spec, seed=seed),
        proxy=PROXY,
        samples=np.arange(40),
        training=Training(learning_rate=0.02, batch_size=8),
        seed=seed,
        round=1,
    )


def both() -> dict[str, Server]:
    return {"side": server("side", ("left", "right")), "sign": server("sign", ("a", "b", "c"), seed=2)}


def consensus(side: Server, samples: int = 40) -> SoftLabels:
    """The first number's sign, and so the class."""
    count = len(side.spec.classes)
    labels = (PROXY.inputs[:samples, 0] > 0).long() * (count - 1)
    values = torch.nn.functional.one_hot(labels, count).float().numpy()
    return SoftLabels("categorical", side.spec.classes, np.arange(samples), values)


def body(side: Server) -> nn.Module:
    assert isinstance(side.model, Network)
    return side.model.body


def test_tasks_of_one_modality_share_the_encoder_and_nothing_else() -> None:
    servers = both()

    Multitask().learn(servers, {name: consensus(side) for name, side in servers.items()})

    assert body(servers["side"]) is body(servers["sign"])
    heads = [servers[name].model.state_dict()["head.weight"].shape for name in ("side", "sign")]
    assert heads == [(2, 64), (3, 64)]


def test_bodies_of_another_size_or_modality_stay_apart() -> None:
    servers = {
        "one": server("one", ("a", "b")),
        "two": server("two", ("a", "b"), model="mlp-medium"),
        "three": server("three", ("a", "b", "c")),
        "four": server("four", ("a", "b"), width=5),
    }

    assert groups(servers) == [["one", "three"], ["two"], ["four"]]


def test_it_answers_every_task_on_all_samples_of_the_round() -> None:
    servers = both()

    for _ in range(6):
        taught = Multitask().learn(
            servers, {"side": consensus(servers["side"], 15), "sign": consensus(servers["sign"])}
        )

    assert set(taught) == {"side", "sign"}
    for name, labels in taught.items():
        assert labels.classes == servers[name].spec.classes
        assert labels.samples.tolist() == list(range(40))
        right = labels.values.argmax(1) == consensus(servers[name]).values.argmax(1)
        assert right.mean() > 0.85


def test_a_task_that_nobody_spoke_about_is_left_out() -> None:
    servers = both()
    before = {key: value.clone() for key, value in servers["sign"].model.state_dict().items() if "head" in key}

    taught = Multitask().learn(servers, {"side": consensus(servers["side"])})

    assert set(taught) == {"side"}
    assert all(torch.equal(servers["sign"].model.state_dict()[key], value) for key, value in before.items())
    assert Multitask().learn(servers, {}) == {}


def test_the_encoder_carries_over_what_another_task_knows() -> None:
    """A head that has seen few samples is better on an encoder that another task's samples have shaped."""

    def error(teacher_of: tuple[str, ...]) -> float:
        servers = both()
        known = {"side": consensus(servers["side"], 6), "sign": consensus(servers["sign"])}
        for step in range(8):
            for side in servers.values():
                side.seed = step
            taught = Multitask(epochs=3).learn(servers, {name: known[name] for name in teacher_of})
        return float(np.abs(taught["side"].values - consensus(servers["side"]).values).mean())

    assert error(("side", "sign")) < error(("side",))


def test_weights_of_the_tasks_are_learnt_and_kept() -> None:
    servers = both()
    rng = np.random.default_rng(0)
    noise = SoftLabels("categorical", ("a", "b", "c"), np.arange(40), rng.dirichlet([0.1] * 3, 40).astype(np.float32))

    for _ in range(4):
        Multitask(weights="uncertainty").learn(servers, {"side": consensus(servers["side"]), "sign": noise})

    sure, unsure = (float(servers[name].memory["log-variance"]) for name in ("side", "sign"))
    assert sure < unsure
    assert sure != 0.0


def test_the_uncertainty_of_a_constant_loss_converges_to_its_logarithm() -> None:
    """min over s of exp(−s) L + s / 2 is at s = ln(2 L)."""
    model = nn.Linear(1, 1)
    part = Part(model, torch.zeros(8, 1), (torch.zeros(8),), lambda z, y: 0 * z.sum() + 2.0, seed=1)

    learnt = fit_jointly(
        [part], training=Training(learning_rate=0.05, batch_size=8), epochs=400, seed=1, uncertainty=True
    )

    assert learnt == [pytest.approx(math.log(4.0), abs=1e-2)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_teaches_the_same(precision: str) -> None:
    def taught() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        servers = both()
        for side in servers.values():
            side.training = Training(batch_size=8, precision="bf16" if precision == "bf16" else "fp32")
        told = Multitask().learn(servers, {name: consensus(side) for name, side in servers.items()})
        return told["sign"].values

    np.testing.assert_array_equal(taught(), taught())


def test_a_pretrained_encoder(tmp_path: Path) -> None:
    trained = server("side", ("left", "right"), seed=9)
    save_weights(body(trained), tmp_path / "tabular.safetensors")
    servers = both()

    Multitask(path=str(tmp_path / "{modality}.safetensors")).start(servers)

    for side in servers.values():
        own = body(side).state_dict()
        assert all(torch.equal(own[key], value) for key, value in body(trained).state_dict().items())


def test_an_encoder_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Multitask(path=str(tmp_path / "none.safetensors")).start(both())
    save_weights(body(server("x", ("a", "b"), model="mlp-medium")), tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedError, match="expected those of the body of 'mlp-small'"):
        Multitask(path=str(tmp_path / "other.safetensors")).start(both())


def test_a_model_without_body_and_head() -> None:
    servers = both()
    servers["side"].model = nn.Linear(4, 2)

    with pytest.raises(UnsupportedError, match="model 'mlp-small' of task 'side' as a part of a multi-task teacher"):
        Multitask().learn(servers, {})


def test_one_task_hears_what_the_other_says_of_the_same_samples() -> None:
    # "side" is undecided about every other sample; "sign" is sure of all, and the two go together.
    servers = both()
    told = {name: consensus(side) for name, side in servers.items()}
    values = told["side"].values.copy()
    values[::2] = 0.5
    told["side"] = replace(told["side"], values=values)
    for side in servers.values():
        side.group = "both"

    heard = {}
    for weight in (0.0, 2.0):
        answers = Multitask(epochs=30, evidence=weight).learn(servers, told)
        heard[weight] = np.abs(answers["side"].values[::2, 0] - 0.5).mean()

    assert heard[2.0] > heard[0.0] + 0.1
