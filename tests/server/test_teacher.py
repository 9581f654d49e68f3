from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, DataError, UnsupportedError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training, predict
from fedstill.common.models import build_model
from fedstill.common.scenario import Plugin
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import ClientInfo, Server
from fedstill.common.task import TaskSpec
from fedstill.server.launch import build_teacher
from fedstill.server.teacher import TEACHERS, Teacher
from fedstill.server.teacher.assistants import Assistants
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


def learn(teacher: Teacher, side: Server, consensus: SoftLabels) -> SoftLabels:
    return teacher.learn({"things": side}, {"things": consensus})["things"]


def test_the_consensus_goes_back_as_it_is() -> None:
    consensus = certain(1)
    side = server()
    before = [value.clone() for value in side.model.state_dict().values()]

    assert Consensus().start({"things": side}) == {}
    assert Consensus().learn({"things": side}, {"things": consensus}) == {"things": consensus}
    assert all(torch.equal(was, now) for was, now in zip(before, side.model.state_dict().values(), strict=True))


def test_a_model_learns_the_consensus_and_answers_at_its_temperature() -> None:
    side = server()

    taught = learn(Model(epochs=30), side, certain(2, temperature=2.0))

    assert Model().start({"things": side}) == {}
    assert (taught.values[:, 2] > 0.9).all()
    assert taught.temperature == 2.0
    logits = side.predict(side.proxy.inputs)
    np.testing.assert_array_equal(taught.values, torch.softmax(logits / 2.0, -1).numpy())


def test_a_model_answers_in_the_form_of_the_consensus() -> None:
    taught = learn(Model(), server(), certain(0, form="logits"))

    assert taught.form == "logits"


def test_a_model_generalises_to_the_samples_that_nobody_labelled() -> None:
    taught = learn(Model(epochs=30), server(), certain(1, samples=6))

    assert taught.samples.tolist() == list(range(12))
    assert (taught.values[6:, 1] > 0.5).all()


def test_the_same_seed_teaches_the_same() -> None:
    first, second = (learn(Model(), server(), certain(1)).values for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_pretrained_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    trained, path = server(seed=9), tmp_path / "t.safetensors"
    save_weights(trained.model, path)
    side = server(seed=1)

    told = Pretrained(path=str(path), temperature=3.0).start({"things": side})["things"]

    assert told.temperature == 3.0
    np.testing.assert_array_equal(told.values, trained.soft_labels(temperature=3.0).values)
    still = learn(Pretrained(path=str(path), epochs=0), side, certain(1))
    np.testing.assert_array_equal(still.values, trained.soft_labels().values)
    moved = learn(Pretrained(path=str(path), epochs=20), side, certain(1))
    assert moved.values[:, 1].mean() > still.values[:, 1].mean()


def test_a_path_may_hold_the_tasks_name(tmp_path: Path) -> None:
    save_weights(server(seed=9).model, tmp_path / "things.safetensors")

    Pretrained(path=str(tmp_path / "{task}.safetensors")).start({"things": server()})


def test_a_pretrained_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.path='': expected a safetensors file"):
        Pretrained()
    with pytest.raises(DataError, match="cannot be read") as missing:
        Pretrained(path=str(tmp_path / "none.safetensors")).start({"things": server()})
    assert missing.value.exit_code == 3
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    with pytest.raises(DataError, match="cannot be read"):
        Pretrained(path=str(tmp_path / "broken.safetensors")).start({"things": server()})
    save_weights(build_model("mlp-medium", SPEC, seed=0), tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedError, match="expected those of 'mlp-small' with 3 classes"):
        Pretrained(path=str(tmp_path / "other.safetensors")).start({"things": server()})


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
    assert {name for name, kind in TEACHERS.all().items() if not kind.has_model} == {"consensus", "remote"}


def test_assistants_hand_the_consensus_down_the_chain() -> None:
    side = server()
    wide = build_model("mlp-large", SPEC, seed=1)
    side.model, side.model_name = wide, "mlp-large"
    teacher = Assistants(models=("mlp-medium", "mlp-small"), epochs=30)

    told = learn(teacher, side, certain(2, temperature=2.0))

    assert (told.values[:, 2] > 0.9).all()
    assert told.temperature == 2.0
    # What goes back is the last assistant's answer, from the weights that are kept for the next round.
    last = build_model("mlp-small", SPEC, seed=7)
    last.load_state_dict({k.split(".", 2)[2]: v for k, v in side.memory.items() if k.startswith("assistant.1.")})
    logits = predict(last, side.proxy.inputs, training=side.training)
    np.testing.assert_array_equal(told.values, torch.softmax(logits / 2.0, -1).numpy())
    assert {key.split(".")[1] for key in side.memory} == {"0", "1"}
    assert (torch.softmax(side.predict(side.proxy.inputs), -1)[:, 2] > 0.9).all()


def test_assistants_go_on_from_where_they_were() -> None:
    side, other = server(), server()
    for _ in range(2):
        learn(Assistants(epochs=1), side, certain(1))
    learn(Assistants(epochs=1), other, certain(1))

    moved = {key for key, value in side.memory.items() if not torch.equal(value, other.memory[key])}
    assert moved == set(other.memory)
    again = server()
    again.memory = dict(other.memory)
    again.model.load_state_dict(other.model.state_dict())
    learn(Assistants(epochs=1), again, certain(1))
    assert all(torch.equal(value, again.memory[key]) for key, value in side.memory.items())


def test_one_assistant_of_the_largest_students_size_where_none_is_named() -> None:
    side = server()
    side.clients = (
        ClientInfo("a", "mlp-medium", 42_000, 10, SPEC.classes),
        ClientInfo("b", "linear-softmax", 15, 10, SPEC.classes),
    )
    learn(Assistants(), side, certain(1))
    wanted = build_model("mlp-medium", SPEC, seed=1).state_dict()
    assert {key: value.shape for key, value in side.memory.items()} == {
        f"assistant.0.{key}": value.shape for key, value in wanted.items()
    }


def test_assistants_that_cannot_be_built() -> None:
    with pytest.raises(
        ConfigError, match=r"teacher.models: 'mlp-smal': expected a known model \(did you mean 'mlp-small"
    ):
        Assistants(models=("mlp-smal",))
    with pytest.raises(UnsupportedError, match="model 'cnn-small' for task 'things' of modality 'tabular'"):
        Assistants(models=("cnn-small",)).start({"things": server()})
