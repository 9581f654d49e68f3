"""Every teacher that is discovered keeps the protocol, for every kind of output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.knowledge import SoftLabels
from fedstill.common.models import build_model
from fedstill.common.outputs import OUTPUTS
from fedstill.common.registry import first_line
from fedstill.common.sides import Server
from fedstill.server.serving.model import Served
from fedstill.server.serving.service import Service
from fedstill.server.teacher import TEACHERS, Teacher
from fedstill.server.teacher.pretrained import save_weights


@pytest.fixture(params=OUTPUTS.names())
def data(request: pytest.FixtureRequest, synthetic: Any) -> Any:
    return synthetic(request.param)


@pytest.fixture(params=TEACHERS.names())
def teacher(request: pytest.FixtureRequest, data: Any, tmp_path: Path) -> Iterator[Teacher]:
    kind, model = TEACHERS.get(request.param), build_model(data.model, data.spec, seed=8)
    if request.param == "pretrained":
        save_weights(model, tmp_path / "weights.safetensors")
        yield kind(path=str(tmp_path / "weights.safetensors"))
    elif request.param == "remote":
        served = Served("synthetic", "1", data.spec, data.model, model.eval(), data.training, data.proxy.digest, "run")
        with Service([served]) as service:
            yield kind(address=f"127.0.0.1:{service.port}", consensus=0.8)
    else:
        yield kind()


def server(data: Any, *, seed: int = 1) -> Server:
    return Server(
        spec=data.spec,
        model_name=data.model,
        model=build_model(data.model, data.spec, seed=1),
        proxy=data.proxy,
        samples=np.arange(24),
        training=data.training,
        seed=seed,
        round=1,
    )


def consensus(data: Any, *, samples: int = 24) -> SoftLabels:
    inputs = data.proxy.inputs[:samples]
    values = data.spec.kind.blank(data.spec.kind.soften(data.logits(inputs), 2.0), inputs).numpy()
    return SoftLabels(data.spec.output, data.spec.classes, np.arange(samples), values, 2.0)


def learn(teacher: Teacher, side: Server, labels: SoftLabels) -> SoftLabels:
    return teacher.learn({"synthetic": side}, {"synthetic": labels})["synthetic"]


def test_what_it_says_of_itself(teacher: Teacher) -> None:
    assert TEACHERS.get(teacher.name) is type(teacher)
    assert isinstance(teacher.has_model, bool)
    assert first_line(teacher)


def test_what_it_teaches_is_of_the_same_kind(teacher: Teacher, data: Any) -> None:
    side = server(data)
    first = teacher.start({"synthetic": side}).get("synthetic")

    taught = learn(teacher, side, consensus(data))

    assert first is None or isinstance(first, SoftLabels)
    for told in (taught, first):
        if told is not None:
            assert told.output == data.spec.output
            assert told.classes == data.spec.classes
            assert told.samples.tolist() == list(range(24))
    assert (taught.temperature, taught.form) == (2.0, "probabilities")


def test_it_comes_nearer_to_the_consensus(teacher: Teacher, data: Any) -> None:
    side, goal = server(data), consensus(data)
    teacher.start({"synthetic": side})
    before = side.soft_labels(temperature=2.0)

    for step in range(12):
        side.seed = step
        taught = learn(teacher, side, goal)

    distance, untaught = (float(np.square(labels.values - goal.values).mean()) for labels in (taught, before))
    assert distance < 0.3 * untaught


def test_only_a_teacher_with_a_model_changes_it(teacher: Teacher, data: Any) -> None:
    side = server(data)
    before = {name: value.clone() for name, value in side.model.state_dict().items()}

    teacher.start({"synthetic": side})
    learn(teacher, side, consensus(data))

    changed = any(not torch.equal(value, before[name]) for name, value in side.model.state_dict().items())
    assert changed == teacher.has_model


def test_the_same_seed_teaches_the_same(teacher: Teacher, data: Any) -> None:
    def taught() -> SoftLabels:
        side = server(data)
        teacher.start({"synthetic": side})
        return learn(teacher, side, consensus(data, samples=10))

    np.testing.assert_array_equal(taught().values, taught().values)
