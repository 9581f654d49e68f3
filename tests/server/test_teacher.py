from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, DataError, UnsupportedError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.scenario import Plugin
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Server
from fedstill.common.task import TaskSpec
from fedstill.server.launch import build_teacher
from fedstill.server.teacher import TEACHERS
from fedstill.server.teacher.consensus import Consensus
from fedstill.server.teacher.model import Model
from fedstill.server.teacher.pretrained import Pretrained, save_weights

SPEC = TaskSpec("things", "categorical", "tabular", ("a", "b", "c"), (4,))


def server(*, seed: int = 1) -> Server:
    return Server(
        spec=SPEC,
        model_name="mlp-small",
        model=build_model("mlp-small", SPEC, seed=seed),
        proxy=ProxySet(torch.randn(12, 4, generator=torch_rng(0, "inputs"))),
        samples=np.arange(12),
        training=Training(learning_rate=0.05, batch_size=4),
        seed=3,
        round=1,
    )


def certain(label: int, *, samples: int = 12, temperature: float = 1.0, form: Any = "probabilities") -> SoftLabels:
    values = np.zeros((samples, 3), dtype=np.float32)
    values[:, label] = 1
    return SoftLabels("categorical", SPEC.classes, np.arange(samples), values, temperature, form)


def test_the_consensus_goes_back_as_it_is() -> None:
    consensus = certain(1)
    side = server()
    before = [value.clone() for value in side.model.state_dict().values()]

    assert Consensus().start(side) is None  # type: ignore[func-returns-value]
    assert Consensus().learn(side, consensus) is consensus
    assert all(torch.equal(was, now) for was, now in zip(before, side.model.state_dict().values(), strict=True))


def test_a_model_learns_the_consensus_and_answers_at_its_temperature() -> None:
    side = server()

    taught = Model(epochs=30).learn(side, certain(2, temperature=2.0))

    assert Model().start(side) is None  # type: ignore[func-returns-value]
    assert (taught.values[:, 2] > 0.9).all()
    assert taught.temperature == 2.0
    logits = side.predict(side.proxy.inputs)
    np.testing.assert_array_equal(taught.values, torch.softmax(logits / 2.0, -1).numpy())


def test_a_model_answers_in_the_form_of_the_consensus() -> None:
    taught = Model().learn(server(), certain(0, form="logits"))

    assert taught.form == "logits"


def test_a_model_generalises_to_the_samples_that_nobody_labelled() -> None:
    taught = Model(epochs=30).learn(server(), certain(1, samples=6))

    assert taught.samples.tolist() == list(range(12))
    assert (taught.values[6:, 1] > 0.5).all()


def test_the_same_seed_teaches_the_same() -> None:
    first, second = (Model().learn(server(), certain(1)).values for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_pretrained_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    trained, path = server(seed=9), tmp_path / "t.safetensors"
    save_weights(trained.model, path)
    side = server(seed=1)

    told = Pretrained(path=str(path), temperature=3.0).start(side)

    assert told.temperature == 3.0
    np.testing.assert_array_equal(told.values, trained.soft_labels(temperature=3.0).values)
    still = Pretrained(path=str(path), epochs=0).learn(side, certain(1))
    np.testing.assert_array_equal(still.values, trained.soft_labels().values)
    moved = Pretrained(path=str(path), epochs=20).learn(side, certain(1))
    assert moved.values[:, 1].mean() > still.values[:, 1].mean()


def test_a_path_may_hold_the_tasks_name(tmp_path: Path) -> None:
    save_weights(server(seed=9).model, tmp_path / "things.safetensors")

    Pretrained(path=str(tmp_path / "{task}.safetensors")).start(server())


def test_a_pretrained_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.path='': expected a safetensors file"):
        Pretrained()
    with pytest.raises(DataError, match="cannot be read") as missing:
        Pretrained(path=str(tmp_path / "none.safetensors")).start(server())
    assert missing.value.exit_code == 3
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    with pytest.raises(DataError, match="cannot be read"):
        Pretrained(path=str(tmp_path / "broken.safetensors")).start(server())
    save_weights(build_model("mlp-medium", SPEC, seed=0), tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedError, match="expected those of 'mlp-small' with 3 classes"):
        Pretrained(path=str(tmp_path / "other.safetensors")).start(server())


def test_teachers_are_built_by_name_with_their_options() -> None:
    assert build_teacher(Plugin("model", {"epochs": 7})) == Model(epochs=7)
    with pytest.raises(ConfigError, match=r"teacher 'modle': expected a known teacher \(did you mean 'model'\?\)"):
        build_teacher(Plugin("modle"))
    with pytest.raises(ConfigError, match=r"unknown key 'teacher.epoch'.*did you mean 'epochs'\?"):
        build_teacher(Plugin("model", {"epoch": 7}))
    with pytest.raises(ConfigError, match=r"teacher.epochs = 'many'"):
        build_teacher(Plugin("model", {"epochs": "many"}))
    with pytest.raises(ConfigError, match="teacher_epochs=0"):
        build_teacher(Plugin("model", {"epochs": 0}))


def test_every_teacher_says_what_it_is() -> None:
    assert set(TEACHERS.names()) >= {"consensus", "model", "pretrained"}
    assert {name: kind.has_model for name, kind in TEACHERS.all().items()} | {"consensus": False} == {
        name: name != "consensus" for name in TEACHERS.names()
    }
