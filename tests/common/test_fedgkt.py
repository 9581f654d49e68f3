"""FedGKT's two losses, what the server learns and what goes back, with numbers worked out by hand."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.algorithms.fedgkt import FedGKT, lesson
from fedstill.common.data.proxy import ProxySet
from fedstill.common.embeddings import MOST_EXAMPLES, WIDEST_EMBEDDING, Embeddings
from fedstill.common.errors import ConfigError, KnowledgeError, Reason
from fedstill.common.keeping import forget, keep, keep_names, kept, kept_names
from fedstill.common.knowledge import Contribution, SoftLabels, knowledge_from_parts
from fedstill.common.learning import Training
from fedstill.common.losses import soft_label_loss
from fedstill.common.models import build_model
from fedstill.common.sides import Client, ClientInfo, Memory, Server, embeddings_of
from fedstill.common.task import Examples, TaskSpec

SPACE = ("cat", "dog", "cow")
SPEC = TaskSpec("pets", "categorical", "tabular", SPACE, (2,))
GOOD: dict[str, Any] = {
    "classes": ("cat", "cow"),
    "logits": np.array([[1, 2], [0, -1]], np.float32),
    "features": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    "labels": np.array([0, 1]),
    "round": 3,
}


def parts(classes: tuple[str, ...] = SPACE) -> dict[str, Any]:
    spec = SPEC.over(classes)
    return {
        "spec": spec,
        "model_name": "mlp-small",
        "model": build_model("mlp-small", spec, seed=1),
        "proxy": ProxySet(torch.zeros(1, 2)),
        "samples": np.array([0]),
        "training": Training(epochs=1, batch_size=8),
        "seed": 1,
        "round": 2,
    }


def client(classes: tuple[str, ...] = SPACE) -> Client:
    private = Examples(torch.tensor([[1.0, 1.0], [0.5, -1.0], [0.0, 2.0]]), torch.tensor([0, 1, 1]))
    return Client(**parts(classes), name="a", private=private)


def server(*names: str) -> Server:
    return Server(**parts(), clients=tuple(ClientInfo(name, "mlp-small", 9, 10, SPACE) for name in names))


def said(count: int, *, classes: tuple[str, ...] = SPACE, level: float = 1.0) -> Embeddings:
    features = np.linspace(-level, level, 4 * count, dtype=np.float32).reshape(count, 4)
    logits = np.zeros((count, len(classes)), np.float32)
    return Embeddings(classes, logits, features, np.arange(count) % len(classes), 2)


def answers(logits: list[list[float]], classes: tuple[str, ...] = SPACE) -> Embeddings:
    count = len(logits)
    return Embeddings(classes, np.array(logits, np.float32), np.zeros((count, 0), np.float32), np.zeros(0, np.int64), 1)


# Knowledge about private examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"features": np.zeros((2, 0), np.float32), "labels": np.zeros(0, np.int64)}])
def test_embeddings_survive_their_parts(change: dict[str, Any]) -> None:
    one = Embeddings(**GOOD | change)

    other = knowledge_from_parts("embeddings", one.header(), one.arrays())

    assert isinstance(other, Embeddings)
    assert (other.classes, other.round) == (("cat", "cow"), 3)
    for name in ("logits", "features", "labels"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
        assert getattr(other, name).dtype == getattr(one, name).dtype
    assert set(one.arrays()) == ({"logits", "features", "labels"} if not change else {"logits"})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ()}, Reason.CLASSES),
        ({"classes": ("cat", "cat")}, Reason.CLASSES),
        ({"classes": ("cat", "cow", "dog")}, Reason.SHAPE),
        ({"logits": np.zeros((3, 2), np.float32)}, Reason.SHAPE),
        ({"logits": np.zeros((0, 2), np.float32), "features": np.zeros((0, 3), np.float32)}, Reason.SHAPE),
        ({"features": np.zeros(2, np.float32)}, Reason.SHAPE),
        ({"features": np.zeros((2, WIDEST_EMBEDDING + 1), np.float32)}, Reason.SHAPE),
        ({"labels": np.array([0])}, Reason.SHAPE),
        ({"labels": np.array([[0, 1]])}, Reason.SHAPE),
        ({"logits": np.zeros((2, 2))}, Reason.TYPE),
        ({"features": np.zeros((2, 3))}, Reason.TYPE),
        ({"labels": np.array([0, 1], np.int32)}, Reason.TYPE),
        ({"logits": np.full((2, 2), math.nan, np.float32)}, Reason.NOT_FINITE),
        ({"features": np.full((2, 3), math.inf, np.float32)}, Reason.NOT_FINITE),
        ({"features": np.full((2, 3), 1e5, np.float32)}, Reason.RANGE),
        ({"logits": np.full((2, 2), -1e5, np.float32)}, Reason.RANGE),
        ({"labels": np.array([0, 2])}, Reason.RANGE),
        ({"labels": np.array([-1, 1])}, Reason.RANGE),
    ],
)
def test_malformed_embeddings_are_refused(change: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(KnowledgeError) as caught:
        Embeddings(**GOOD | change)
    assert caught.value.reason is reason


def test_too_many_examples_are_refused() -> None:
    count = MOST_EXAMPLES + 1
    with pytest.raises(KnowledgeError, match=f"with N from 1 to {MOST_EXAMPLES}"):
        Embeddings(("cat",), np.zeros((count, 1), np.float32), np.zeros((count, 0), np.float32), np.zeros(0, np.int64))


@pytest.mark.parametrize(
    ("header", "arrays"),
    [
        ({"classes": "cat"}, {}),
        ({"round": True}, {}),
        ({}, {"logits": None}),
        ({}, {"logits": np.float32(1)}),
        ({}, {"features": np.array(1, np.float32)}),
        ({}, {"labels": np.array([0.0, 1.0])}),
    ],
)
def test_parts_that_are_no_embeddings(header: dict[str, Any], arrays: dict[str, Any]) -> None:
    one = Embeddings(**GOOD)
    kept_arrays = {name: array for name, array in (dict(one.arrays()) | arrays).items() if array is not None}
    with pytest.raises(KnowledgeError):
        knowledge_from_parts("embeddings", one.header() | header, kept_arrays)


def test_of_another_kind() -> None:
    with pytest.raises(KnowledgeError, match="SoftLabels: expected Embeddings"):
        embeddings_of(SoftLabels("categorical", ("a",), np.array([0]), np.ones((1, 1), np.float32)))


# Memory --------------------------------------------------------------------------------------------------------------


def test_what_is_kept_under_one_key_is_not_that_of_another() -> None:
    memory: Memory = {"weights": torch.ones(1)}
    keep(memory, "said.a", Embeddings(**GOOD))
    keep(memory, "said.a:array.x", answers([[1.0, 2.0, 3.0]]))
    keep_names(memory, "names", ["a", "ü/b"])

    keep(memory, "said.a", answers([[4.0, 5.0, 6.0]]))

    first, second = (embeddings_of(kept(memory, key)) for key in ("said.a", "said.a:array.x"))
    assert first.logits.tolist() == [[4, 5, 6]]
    assert first.features.shape == (1, 0)
    assert second.logits.tolist() == [[1, 2, 3]]
    assert kept_names(memory, "names") == ["a", "ü/b"]
    forget(memory, "said.a")
    assert kept(memory, "said.a") is None
    assert kept(memory, "said.a:array.x") is not None
    forget(memory, "said.a:array.x")
    assert set(memory) == {"weights", "names"}


# The method ----------------------------------------------------------------------------------------------------------


def test_what_the_server_learns_is_over_all_classes() -> None:
    one = Embeddings(**GOOD)
    other = Embeddings(SPACE, np.array([[0, 3, 0]], np.float32), np.zeros((1, 3), np.float32), np.array([1]), 3)

    labels, soft, known = lesson([one, other], space=SPACE, temperature=3.0)

    assert labels.tolist() == [0, 2, 1]
    assert known.tolist() == [[True, False, True]] * 2 + [[True] * 3]
    e = math.exp(1 / 3)
    wanted = [[1 / (1 + e), 0, e / (1 + e)], [e / (1 + e), 0, 1 / (1 + e)]]
    wanted += [[1 / (2 + math.e), math.e / (2 + math.e), 1 / (2 + math.e)]]
    np.testing.assert_allclose(soft, wanted, rtol=1e-6)
    with pytest.raises(KnowledgeError, match="at least one contribution"):
        lesson([], space=SPACE, temperature=1.0)


def test_the_servers_loss_is_over_the_classes_that_a_client_knows() -> None:
    logits, labels = torch.tensor([[1.0, 5.0, 0.0]]), torch.tensor([2])
    soft, known = torch.tensor([[0.25, 0.0, 0.75]]), torch.tensor([[True, False, True]])

    found = FedGKT(temperature=2.0, weight=0.5)._loss(logits, labels, soft, known)

    own = math.log(math.e + math.exp(5) + 1)
    cat = math.exp(0.5) / (math.exp(0.5) + 1)
    apart = 4 * (0.25 * math.log(0.25 / cat) + 0.75 * math.log(0.75 / (1 - cat)))
    assert float(found) == pytest.approx(own + 0.5 * apart, rel=1e-5)


def test_a_client_learns_its_labels_and_the_servers_answers() -> None:
    side, method = client(), FedGKT(temperature=2.0, weight=0.5)
    told = answers([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    seen: list[float] = []
    fit = side.fit

    def watched(*args: Any, **options: Any) -> float:
        seen.append(fit(*args, **options))
        return seen[-1]

    with torch.no_grad():
        logits = side.model(side.private.inputs)
        own = SPEC.kind.loss(logits, side.private.targets)
        soft = torch.softmax(torch.from_numpy(told.logits) / 2, -1)
        apart = soft_label_loss(logits, soft, kind=SPEC.kind, temperature=2.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "fit", lambda _, *args, **options: watched(*args, **options))
        method.absorb(side, told)
        answer = method.local(side)

    assert seen == [pytest.approx(float(own + 0.5 * apart), rel=1e-5)]
    assert side.memory == {}
    assert answer.features.shape == (3, 64)
    np.testing.assert_allclose(answer.logits, side.predict(side.private.inputs), rtol=1e-5)
    assert answer.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("told", [answers([[1.0, 0.0, 0.0]]), answers([[1.0]] * 3, classes=("horse",))])
def test_answers_about_something_else_are_not_heard(told: Embeddings) -> None:
    side, alone, method = client(), client(), FedGKT()
    method.absorb(side, told)

    assert np.array_equal(method.local(side).logits, method.local(alone).logits)


def test_answers_over_other_classes_are_aligned_by_name() -> None:
    method, one, other = FedGKT(), client(), client()
    method.absorb(one, answers([[1.0, 4.0]] * 3, classes=("dog", "cat")))
    method.absorb(other, answers([[4.0, 1.0]] * 3, classes=("cat", "dog")))

    assert np.array_equal(method.local(one).logits, method.local(other).logits)


def test_everybody_gets_the_answers_about_its_own_examples_and_keeps_them_while_away() -> None:
    side, method = server("a", "b", "c"), FedGKT(server_size="small")
    first = method.merge(side, [Contribution("b", 5, said(5, classes=SPACE[1:])), Contribution("a", 3, said(3))])

    assert first.common is None
    told = {name: embeddings_of(one) for name, one in first.own.items()}
    assert {name: one.logits.shape for name, one in told.items()} == {"a": (3, 3), "b": (5, 2)}
    assert told["b"].classes == SPACE[1:]
    assert not any(one.features.size or one.labels.size for one in told.values())

    side.round, side.seed = 3, 2
    second = method.merge(side, [Contribution("a", 3, said(3)), Contribution("c", 2, said(2))])

    again = {name: embeddings_of(one) for name, one in second.own.items()}
    assert set(again) == {"a", "b", "c"}
    assert np.array_equal(again["b"].logits, told["b"].logits)
    assert not np.array_equal(again["a"].logits, told["a"].logits)


def test_the_servers_model_learns_from_round_to_round() -> None:
    side, method = server("a"), FedGKT(server_size="small")
    losses = []
    for number in range(1, 9):
        side.round, side.seed = number, number
        told = embeddings_of(method.merge(side, [Contribution("a", 6, said(6))]).own["a"])
        losses.append(float(SPEC.kind.loss(torch.from_numpy(told.logits), torch.from_numpy(said(6).labels))))

    assert losses[-1] < losses[0]


def test_a_model_that_diverges_is_as_it_was_before(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, method = server("a", "b"), FedGKT(server_size="small")
    before = method.merge(side, [Contribution("a", 3, said(3))])
    memory = {key: value.clone() for key, value in side.memory.items()}
    monkeypatch.setattr(
        "fedstill.common.algorithms.fedgkt.predict", lambda model, inputs, **_: torch.full((len(inputs), 3), math.nan)
    )

    with caplog.at_level(logging.WARNING):
        told = method.merge(side, [Contribution("a", 3, said(3, level=1e4)), Contribution("b", 2, said(2))])

    assert "the server's model of task 'pets' diverged" in caplog.text
    assert side.memory.keys() == memory.keys()
    assert all(torch.equal(value, memory[key]) for key, value in side.memory.items())
    assert set(told.own) == {"a"}
    assert np.array_equal(embeddings_of(told.own["a"]).logits, embeddings_of(before.own["a"]).logits)


def test_what_is_refused() -> None:
    wrong: dict[str, Any]
    for wrong in ({"temperature": 0.0}, {"weight": 0.0}, {"server_epochs": 0}, {"server_size": "huge"}):
        with pytest.raises(ConfigError):
            FedGKT(**wrong)
