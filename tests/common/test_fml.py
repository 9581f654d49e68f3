"""FML on models of a few numbers: both losses by hand, what travels, and what is forgotten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, tensor

from fedstill.common.algorithms import fml
from fedstill.common.algorithms.fml import FML, mutual
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import KnowledgeError, Reason, UnsupportedError
from fedstill.common.knowledge import Contribution, Parameters
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.outputs import output_kind
from fedstill.common.sides import Client, Server
from fedstill.common.task import Examples, TaskSpec

SPEC = TaskSpec("t", "categorical", "tabular", ("a", "b"), (2,))
KIND = output_kind("categorical")
LN3 = math.log(3)


def linear(weight: Any) -> nn.Linear:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(tensor(weight))
    return model


def side(model: nn.Module, *, name: str = "linear", **others: Any) -> dict[str, Any]:
    return {
        "spec": SPEC,
        "model_name": name,
        "model": model,
        "proxy": ProxySet(tensor([[1.0, 0.0]])),
        "samples": np.arange(1),
        "training": Training(epochs=1, batch_size=8, learning_rate=1.0, optimizer="sgd"),
        "seed": 1,
        "round": 1,
        **others,
    }


def client(model: nn.Module, **others: Any) -> Client:
    private = Examples(tensor([[1.0, 0.0]]), tensor([0]))
    return Client(**side(model, **others), name="client-0", private=private)


def test_the_loss_by_hand() -> None:
    # p = (¾, ¼), the other says (½, ½), the class is a: ¼ · ln(4/3) + ¾ · ½ (ln(2/3) + ln 2).
    found = mutual(KIND, tensor([[LN3, 0.0]]), tensor([[0.0, 0.0]]), tensor([0]), tensor([[1.0]]), share=0.25)
    assert float(found) == pytest.approx(0.25 * math.log(4 / 3) + 0.375 * (math.log(2 / 3) + math.log(2)), rel=1e-5)


def test_no_gradient_goes_to_the_teacher() -> None:
    own, other = (tensor([[LN3, 0.0]], requires_grad=True) for _ in range(2))
    torch.autograd.backward(mutual(KIND, own, other + 1, tensor([0]), tensor([[1.0]]), share=0.5))
    assert own.grad is not None
    assert other.grad is None


def test_padding_teaches_nothing() -> None:
    kind = output_kind("token-level")
    logits, other = torch.zeros(1, 2, 3), tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    found = mutual(kind, logits, other, tensor([[1, -100]]), tensor([[5, 0]]), share=0.5)
    assert float(found) == pytest.approx(0.5 * math.log(3), rel=1e-5)


def test_words_after_the_end_teach_nothing() -> None:
    kind = output_kind("sequence")
    logits, other = torch.zeros(1, 2, 3), tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    found = mutual(kind, logits, other, tensor([[2, 0]]), tensor([[1, 1, 0]]), share=0.5)
    # ½ ln 3 for the task; the other's hypothesis at the first step is padding as well: nothing is written.
    assert float(found) == pytest.approx(0.5 * math.log(3), rel=1e-5)


def test_a_step_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """One example (1, 0) of class a; the student says (½, ½), the meme (¾, ¼)."""
    student = client(linear([[0.0, 0.0], [0.0, 0.0]]))
    monkeypatch.setattr(fml, "build_model", lambda *_, **__: linear([[0.0, 0.0], [0.0, 0.0]]))
    method = FML(student_share=0.5, meme_share=0.25)
    method.absorb(student, Parameters("linear", {"weight": np.array([[LN3, 0], [0, 0]], np.float32)}))
    answer = method.local(student)

    # Student: ½ (½ − 1) + ½ (½ − ¾) = −3/8.  Meme: ¼ (¾ − 1) + ¾ (¾ − ½) = 1/8.
    np.testing.assert_allclose(student.model.state_dict()["weight"], [[3 / 8, 0], [-3 / 8, 0]], atol=1e-6)
    np.testing.assert_allclose(answer.weights["weight"].astype(float), [[LN3 - 1 / 8, 0], [1 / 8, 0]], atol=1e-6)
    assert answer.model == "linear"
    assert student.memory == {}


def test_without_the_others_it_is_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With α = 1 the student takes just the steps that it takes alone, in the same order."""
    private = Examples(torch.randn(20, 2, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 2)
    students = [client(build_model("mlp-small", SPEC, seed=3), name="mlp-small") for _ in range(2)]
    for one in students:
        one.private = private
    students[0].train()
    FML(student_share=1.0).local(students[1])
    for key, value in students[0].model.state_dict().items():
        torch.testing.assert_close(students[1].model.state_dict()[key], value)


def test_memes_are_averaged_by_examples_into_the_servers_model() -> None:
    server = Server(**side(linear([[0.0, 0.0], [0.0, 0.0]])))
    memes = [Parameters("linear", {"weight": np.full((2, 2), value, np.float32)}) for value in (0, 4)]
    mean = FML().merge(server, [Contribution("a", 1, memes[0]), Contribution("b", 3, memes[1])])
    assert mean.weights["weight"].tolist() == server.model.state_dict()["weight"].tolist() == [[3, 3], [3, 3]]
    assert FML().start(server).weights["weight"].tolist() == [[3, 3], [3, 3]]


def test_a_meme_of_another_architecture_than_the_student() -> None:
    meme = build_model("mlp-small", SPEC, seed=2)
    student = client(build_model("mlp-medium", SPEC, seed=1), name="mlp-medium")
    FML().absorb(student, Server(**side(meme, name="mlp-small")).parameters())
    answer = FML().local(student)
    assert answer.model == "mlp-small"
    assert {key: value.shape for key, value in answer.weights.items()} == {
        key: tuple(value.shape) for key, value in meme.state_dict().items()
    }


@pytest.mark.parametrize("name", ["hf-somewhere", "unheard-of", "speechcnn-small"])
def test_a_meme_that_no_server_may_choose(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"a meme model '{name}': expected one of autoencoder-large"):
        FML().absorb(client(linear([[0.0, 0.0], [0.0, 0.0]])), Parameters(name, {"weight": np.zeros(1, np.float32)}))


def test_a_student_that_diverged_does_not_speak() -> None:
    def spoil(model: nn.Module) -> nn.Module:
        for value in model.state_dict().values():
            value.fill_(float("nan"))
        return model

    with pytest.raises(KnowledgeError, match="diverged") as caught:
        FML().local(client(spoil(build_model("mlp-small", SPEC, seed=1)), name="mlp-small"))
    assert caught.value.reason is Reason.NOT_FINITE


def test_own_label_spaces_are_refused(play_small: Any) -> None:
    changes = {
        "algorithm": {"name": "fml"},
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }
    with pytest.raises(UnsupportedError, match="expected one label space on all clients, because it sends weights"):
        play_small(changes)


def test_students_stay_their_own(play_small: Any) -> None:
    """What travels is the meme, of which the server has one; students of two architectures stay where they are."""
    played = play_small({"algorithm": {"name": "fml"}, "tasks.wine.teacher": "linear-softmax", "alone": False})
    told = played.states[-1].tasks["wine"].knowledge
    assert told.model == "linear-softmax"
    assert sum(array.size for array in told.weights.values()) == 42
    assert {one["wine"]["model"] for one in played.folder.config()["roster"].values()} == {
        "linear-softmax",
        "mlp-small",
    }
    assert all("accuracy" in record["tasks"]["wine"]["server"] for record in played.records[1:])
