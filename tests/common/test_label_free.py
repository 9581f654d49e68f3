"""Methods that exchange no labels: exact merges, what a client makes of them, and whether it helps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedstill.common.algorithms.features import FeatureHints
from fedstill.common.algorithms.relational import Relational, relation_loss
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, KnowledgeError, UnsupportedError
from fedstill.common.geometry import relations
from fedstill.common.knowledge import Contribution, Features, Knowledge
from fedstill.common.learning import Training
from fedstill.common.models import build_model, check_model
from fedstill.common.network import Network
from fedstill.common.seeding import derive, torch_rng
from fedstill.common.sides import Client, Server, features_of, relations_of
from fedstill.common.task import Examples, TaskSpec
from fedstill.common.tasks.image import ImageTask

TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])  # sides 3, 5, 4
PROXY = torch.randn(30, 2, generator=torch_rng(1, "proxy"))
SPEC = TaskSpec("t", "categorical", "tabular", ("a", "b"), (2,))


def client(body: nn.Module | None = None, **others: Any) -> Client:
    model = build_model("mlp-small", SPEC, seed=1) if body is None else Network(body, nn.Linear(2, 2))
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    given: dict[str, Any] = {
        "spec": SPEC,
        "model_name": "mlp-small",
        "model": model,
        "proxy": ProxySet(PROXY),
        "samples": np.arange(30),
        "training": Training(epochs=1, batch_size=8, learning_rate=0.01),
        "seed": 1,
        "round": 1,
        "name": "client-0",
        "private": Examples(inputs, torch.tensor([0, 1])),
    }
    return Client(**given | others)


def server() -> Server:
    side = client()
    return Server(
        spec=SPEC,
        model_name="mlp-small",
        model=side.model,
        proxy=side.proxy,
        samples=side.samples,
        training=side.training,
        seed=1,
        round=1,
    )


def contributions(*knowledge: Knowledge) -> list[Contribution]:
    return [Contribution(f"client-{number}", 1 + number, one) for number, one in enumerate(knowledge)]


def test_relation_loss() -> None:
    sides = torch.tensor([[0.0, 3.0, 5.0], [3.0, 0.0, 4.0], [5.0, 4.0, 0.0]])
    assert relation_loss(TRIANGLE, sides / 100).item() == pytest.approx(0, abs=1e-12)
    # 0.75, 1.25, 1 against 1, 1, 1: mean of ½ (¼)², ½ (¼)², 0
    assert relation_loss(TRIANGLE, 1 - torch.eye(3)).item() == pytest.approx(1 / 48)
    # 0.6, 1.2, 1.2 against 3, 0, 0: 2.4 − ½, 1.2 − ½, 1.2 − ½
    far = torch.zeros(3, 3)
    far[0, 1] = far[1, 0] = 7.0
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 15**0.5]])  # sides 2, 4, 4
    assert relation_loss(points, far).item() == pytest.approx(1.1)


def test_relation_loss_of_hardly_anything() -> None:
    one = torch.ones(1, 2, requires_grad=True)
    loss = relation_loss(one, torch.zeros(1, 1))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    same = torch.ones(3, 2, requires_grad=True)
    loss = relation_loss(same, 1 - torch.eye(3))
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.5)
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_every_client_has_the_same_weight() -> None:
    line = relations(torch.tensor([[0.0], [1.0], [2.0]]), np.arange(3))  # 0.75, 1.5, 0.75
    told = Relational().merge(server(), contributions(relations(TRIANGLE, np.arange(3)), line))
    np.testing.assert_allclose(told.values[np.triu_indices(3, 1)], [0.75, 1.375, 0.875], rtol=1e-6)


def test_the_answer_is_about_the_rounds_samples() -> None:
    chosen = np.array([7, 2, 19])
    distances, hints = Relational().local(client(samples=chosen)), FeatureHints().local(client(samples=chosen))
    whole = FeatureHints().local(client())

    assert distances.samples.tolist() == hints.samples.tolist() == [7, 2, 19]
    np.testing.assert_allclose(hints.values, whole.values[chosen], atol=1e-6)
    np.testing.assert_allclose(
        distances.values, relations(torch.from_numpy(whole.values[chosen]), chosen).values, atol=1e-5
    )


def test_distances_are_learnt_and_the_task_with_them() -> None:
    wanted = relations(PROXY[:, :1], np.arange(30))  # one of the two inputs counts, the other does not
    student = client(training=Training(batch_size=8, learning_rate=0.01))

    def apart() -> float:
        return relation_loss(student.features(), torch.from_numpy(wanted.values)).item()

    before = apart()
    Relational(epochs=40).absorb(student, wanted)

    assert apart() < 0.1 * before
    assert student.predict(student.private.inputs).argmax(-1).tolist() == [0, 1]


def test_hints_are_learnt_through_a_projector_that_stays() -> None:
    told = Features(np.arange(30), torch.stack([PROXY.prod(-1), PROXY[:, 0]], 1).numpy())
    student, method = client(training=Training(batch_size=8, learning_rate=0.01)), FeatureHints(epochs=40)

    method.absorb(student, told)
    first = dict(student.memory)
    weight, bias = first["projector.weight"], first["projector.bias"]
    missed = (student.features() @ weight.T + bias - torch.from_numpy(told.values)).square().mean(0)

    assert weight.shape == (2, 64)
    # The product is not to be had by a linear layer on the features of an untrained network of that seed.
    assert (missed < 0.1 * torch.from_numpy(told.values).var(0)).all()
    FeatureHints(epochs=1).absorb(student, told)
    torch.testing.assert_close(student.memory["projector.weight"], weight, rtol=0, atol=0.1)
    assert not torch.equal(student.memory["projector.weight"], weight)
    assert student.predict(student.private.inputs).argmax(-1).tolist() == [0, 1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_follows_in_either_precision(precision: Any) -> None:
    training = Training(batch_size=8, learning_rate=0.01, precision=precision)
    for method, told in (
        (Relational(epochs=20), relations(PROXY, np.arange(30))),
        (FeatureHints(epochs=20), Features(np.arange(30), PROXY.numpy())),
    ):
        student = client(training=training)
        method.absorb(student, told)
        assert student.predict(student.private.inputs).argmax(-1).tolist() == [0, 1]
        assert all(value.dtype == torch.float32 for value in student.model.state_dict().values())
        assert all(value.dtype == torch.float32 for value in student.memory.values())


@pytest.mark.parametrize("method", [Relational(), FeatureHints()])
def test_models_without_features_are_refused(method: Relational | FeatureHints) -> None:
    for side in (client(nn.Flatten()), client(model=nn.Linear(2, 2))):
        with pytest.raises(UnsupportedError, match="choose a model with hidden layers"):
            method.local(side)


@pytest.mark.parametrize("modality", ["text", "image", "tabular"])
def test_they_are_refused_before_weights_are_made(modality: str) -> None:
    shape = {"text": (5,), "image": (1, 8, 8), "tabular": (3,)}[modality]
    spec = TaskSpec("t", "categorical", modality, ("a", "b"), shape, vocabulary=9 if modality == "text" else 0)
    check_model("linear-softmax", spec)
    with pytest.raises(UnsupportedError, match="model 'linear-softmax' with a method that exchanges features"):
        check_model("linear-softmax", spec, features=True)
    check_model("bag-small" if modality == "text" else "mlp-small", spec, features=True)


@pytest.mark.parametrize("name", ["relational", "features"])
def test_a_run_with_a_model_without_features_does_not_begin(name: str, play_small: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedError, match="model 'linear-softmax' with a method that exchanges features"):
        play_small({"algorithm": {"name": name}, "tasks.wine.models": ["mlp-small", "linear-softmax"]})


def test_knowledge_of_another_kind_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="Features: expected Relations"):
        relations_of(FeatureHints().local(client()))
    with pytest.raises(KnowledgeError, match="Relations: expected Features"):
        features_of(Relational().local(client()))


def test_a_space_wider_than_knowledge_may_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="algorithm_width=4097: expected at most 4096"):
        FeatureHints(width=4097)


# Digits --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits as two tasks whose label spaces do not meet.

    Attributes:
        seed: of the split and of the models.
    """

    seed: int

    def client(self, number: int, model: str, classes: tuple[str, ...], rows: slice) -> Client:
        images, labels = prepared()[:2]
        order = torch.randperm(len(images), generator=torch_rng(self.seed, "order"))
        own = order[400:][rows]
        spec = TaskSpec("digits", "categorical", "image", classes, (1, 8, 8))
        return client(
            spec=spec,
            model=build_model(model, spec, seed=derive(self.seed, number)),
            proxy=ProxySet(images[order[:400]]),
            samples=np.arange(400),
            training=Training(epochs=8, batch_size=16),
            private=Examples(images[own], labels[own] % len(classes)),
        )

    def accuracy(self, weight: float) -> float:
        """Mean accuracy in digits of two clients with 40 images each, beside two that tell even from odd with 250."""
        digits, parity = tuple("0123456789"), ("even", "odd")
        sides = [
            self.client(0, "mlp-small", digits, slice(0, 40)),
            self.client(1, "mlp-medium", digits, slice(40, 80)),
            self.client(2, "mlp-small", parity, slice(80, 330)),
            self.client(3, "mlp-medium", parity, slice(330, 580)),
        ]
        method, told = Relational(weight=weight), None
        for step in range(1, 6):
            answers = []
            for number, side in enumerate(sides):
                side.round, side.seed = step, derive(self.seed, number, step)
                if told is not None:
                    method.absorb(side, told)
                answers.append(Contribution(f"client-{number}", len(side.private), method.local(side)))
            told = method.merge(server(), answers)
        images, labels = prepared()[2:]
        return statistics.mean((side.predict(images).argmax(-1) == labels).float().mean().item() for side in sides[:2])


def prepared() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels of the pool, then of the test part."""
    task, data = ImageTask(), ImageTask().load(None)
    assert data.test is not None
    pool, test = (task.prepare(part.inputs, data.pool.inputs) for part in (data.pool, data.test))
    return pool, data.pool.targets, test, data.test.targets


def test_distances_help_a_client_of_another_task_that_has_few_examples() -> None:
    # The control takes the same steps, private ones included, with hardly any weight on the distances.
    told, control = (statistics.mean(Digits(seed).accuracy(weight) for seed in (1, 2, 3)) for weight in (10.0, 1e-9))

    assert told > control + 0.005
