"""MHAT on models of a few numbers: what the auxiliary model learns from the answers, and what it tells of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, tensor

from fedstill.common.algorithms.mhat import MHAT
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.sides import Client, Server
from fedstill.common.task import Examples, TaskSpec

SPEC = TaskSpec("t", "categorical", "tabular", ("a", "b"), (2,))
ONE_STEP = Training(batch_size=8, learning_rate=1.0, optimizer="sgd")


def linear(rows: int = 2) -> nn.Linear:
    model = nn.Linear(2, rows, bias=False)
    nn.init.zeros_(model.weight)
    return model


def side(spec: TaskSpec = SPEC) -> dict[str, Any]:
    return {
        "spec": spec,
        "model_name": "linear",
        "model": linear(len(spec.classes)),
        "proxy": ProxySet(tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])),
        "samples": np.arange(3),
        "training": ONE_STEP,
        "seed": 1,
        "round": 1,
    }


def answers(*values: Any, classes: tuple[str, ...] = ("a", "b"), temperature: float = 1.0) -> list[Contribution]:
    return [
        Contribution(
            f"client-{number}",
            1,
            SoftLabels("categorical", classes, np.arange(3), np.array(one, np.float32), temperature),
        )
        for number, one in enumerate(values)
    ]


def test_the_auxiliary_model_takes_a_step_towards_the_mean_and_answers() -> None:
    server = Server(**side())
    told = MHAT(auxiliary_epochs=1).merge(
        server, answers([[1, 0], [0, 1], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    )
    # The mean is (¾, ¼), (¼, ¾), (½, ½), the model says ½: a step of 1 adds (1/3) Σ_x (p̄_a(x) − ½) x to row a.
    np.testing.assert_allclose(server.model.state_dict()["weight"], [[1 / 12, -1 / 12], [-1 / 12, 1 / 12]], atol=1e-6)
    # Scores (1/12, −1/12) on the first sample: odds of e^(1/6).
    odds = 1 / (1 + math.exp(-1 / 6))
    np.testing.assert_allclose(told.values, [[odds, 1 - odds], [1 - odds, odds], [0.5, 0.5]], atol=1e-6)
    assert told.samples.tolist() == [0, 1, 2]


def test_temperature_in_both_directions() -> None:
    server = Server(**side())
    method = MHAT(temperature=2.0, auxiliary_epochs=1)
    told = method.merge(server, answers([[1, 0], [0, 1], [0.5, 0.5]], temperature=2.0))
    # T² · KL has the gradient T (p − p̄): row a gets (2/3) (½, −½); the answer divides scores by 2.
    np.testing.assert_allclose(server.model.state_dict()["weight"][0], [1 / 3, -1 / 3], atol=1e-6)
    assert told.values[0, 0] == pytest.approx(1 / (1 + math.exp(-1 / 3)), abs=1e-6)
    assert told.temperature == 2.0
    assert method.asked == ("probabilities", 2.0)


def test_a_class_that_nobody_knows_is_not_spoken_of() -> None:
    server = Server(**side(TaskSpec("t", "categorical", "tabular", ("a", "b", "c"), (2,))))
    told = MHAT(auxiliary_epochs=1).merge(server, answers([[1, 0]] * 3, classes=("b", "c")))
    assert told.classes == ("b", "c")
    np.testing.assert_allclose(told.values.sum(-1), 1, atol=1e-6)
    assert server.model.state_dict()["weight"][0].tolist() == [0, 0]


def test_a_student_learns_what_the_auxiliary_model_says() -> None:
    student = Client(**side(), name="client-0", private=Examples(tensor([[1.0, 0.0]]), tensor([0])))
    labels = SoftLabels("categorical", ("a", "b"), np.arange(3), np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32))
    MHAT(distil_epochs=1).absorb(student, labels)
    np.testing.assert_allclose(student.model.state_dict()["weight"][0], [1 / 6, -1 / 6], atol=1e-6)


def test_it_says_nothing_before_the_first_answers() -> None:
    server = Server(**side())
    MHAT().start(server)
    assert torch.equal(server.model.state_dict()["weight"], torch.zeros(2, 2))


@pytest.mark.parametrize("teacher", ["model", "multitask", "pretrained"])
def test_another_teacher_is_refused(small: Any, teacher: str) -> None:
    with pytest.raises(ConfigError, match=f"teacher '{teacher}' with algorithm 'mhat': expected 'consensus'"):
        small({"algorithm": {"name": "mhat"}, "teacher.kind": teacher})
