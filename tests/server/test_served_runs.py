"""What of a run's folder is served."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.errors import ConfigError, RunFolderError, UnsupportedError
from fedstill.common.learning import predict
from fedstill.common.models import build_model
from fedstill.server.serving.loading import server_models
from fedstill.server.serving.model import weights_digest
from fedstill.simulations.trained import students


def test_the_servers_model_and_the_students_of_a_run(play_small: Any) -> None:
    played = play_small({"teacher.kind": "model", "tasks.wine.proxy.samples": 48})
    [one] = server_models(played.folder)
    state = played.states[-1].tasks["wine"]

    assert (one.name, one.version, one.architecture, one.run) == ("wine", "3", "mlp-small", "run")
    assert one.spec.input_shape == (13,)
    told = one.answer([np.zeros((2, 13), dtype=np.float32)], block=16)
    again = build_model("mlp-small", one.spec, seed=0)
    again.load_state_dict(dict(state.model))
    assert torch.equal(told, predict(again, torch.zeros(16, 13), training=one.training)[:2])
    assert one.properties()["weights"] == weights_digest(state.model)

    [student] = students(played.folder, "client-2")
    assert (student.name, student.version, student.architecture) == ("wine", "3", "linear-softmax")
    assert student.properties()["weights"] != one.properties()["weights"]
    with pytest.raises(ConfigError, match=r"client 'client-9' of run run: .*did you mean 'client-"):
        students(played.folder, "client-9")


def test_averaged_weights_are_in_the_clients_architecture(play_small: Any) -> None:
    played = play_small(
        {"algorithm.name": "fedavg", "tasks.wine.models": ["linear-softmax"], "tasks.wine.teacher": "mlp-large"}
    )

    assert server_models(played.folder)[0].architecture == "linear-softmax"


def test_a_student_of_few_classes_names_these(play_small: Any) -> None:
    changes = {"tasks.wine.label-space": "own", "tasks.wine.partition": {"kind": "pathological", "classes": 2}}
    played = play_small({**changes, "clients.count": 3})
    known = {name: told["wine"]["classes"] for name, told in played.folder.config()["roster"].items()}

    for name, classes in known.items():
        [one] = students(played.folder, name)
        assert list(one.spec.classes) == classes == json.loads(one.properties()["classes"])
        assert one.answer([np.zeros((1, 13), dtype=np.float32)], block=16).shape == (1, len(classes))
    assert min(len(classes) for classes in known.values()) == 2


def test_folders_with_nothing_to_serve(play_small: Any) -> None:
    played = play_small()
    with pytest.raises(UnsupportedError, match=r"teacher 'consensus'\): expected a server with a model"):
        server_models(played.folder)
    for path in (played.folder.clients / "client-1").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(RunFolderError, match=r"student of client-1 in .* is not there, or damaged"):
        students(played.folder, "client-1")
    older = played.folder.path / "config.toml"
    older.write_text(older.read_text().partition("[specs")[0])
    with pytest.raises(RunFolderError, match="does not say what the models read"):
        students(played.folder, "client-2")
