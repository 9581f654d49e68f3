"""Runs whose shared teacher is a service: equal to those with the same model from a file, and resumed when it dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstill.common.errors import (
    RunError,
)
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.server.folder import new_folder
from fedstill.server.holdings import simulated
from fedstill.server.serving.loading import server_models
from fedstill.server.serving.model import Served
from fedstill.server.serving.service import Service
from fedstill.server.teacher.pretrained import save_weights
from fedstill.simulations.run import simulate

WINE = {"tasks.wine.proxy.samples": 48, "tasks.wine.proxy.per-round": 16, "rounds.count": 3}


@pytest.fixture
def wine(small: Any, tmp_path: Path) -> Any:
    """A teacher of the small scenario: as a file, and to be served."""
    task = simulated(small(WINE), None)["wine"]
    model = build_model(task.model, task.spec, seed=77).eval()
    save_weights(model, tmp_path / "wine.safetensors")
    one = Served("wine", "1", task.spec, task.model, model, Training(), task.proxy.digest, "elsewhere")
    return one, tmp_path / "wine.safetensors"


def outcome(played: Any) -> tuple[list[Any], list[Any]]:
    """What clients measured and were told, step by step."""
    told = [state.tasks["wine"].knowledge for state in played.states]
    return [record["tasks"]["wine"]["clients"] for record in played.records], [
        None if one is None else (one.samples.tolist(), one.values.tolist(), one.temperature) for one in told
    ]


def from_afar(service: Service, **options: Any) -> dict[str, Any]:
    teacher = {"kind": "remote", "address": f"127.0.0.1:{service.port}", "retries": 0, **options}
    return {**WINE, **{f"teacher.{key}": value for key, value in teacher.items()}}


def test_a_run_equals_one_with_the_same_model_from_a_file(play_small: Any, wine: Any) -> None:
    one, path = wine
    changes = {**WINE, "teacher.kind": "pretrained", "teacher.path": str(path), "teacher.epochs": 0}
    here = play_small(changes, name="here")
    with Service([one]) as service:
        there = play_small(from_afar(service), name="there")

    assert outcome(there) == outcome(here)
    assert len(outcome(there)[1]) == 5


class Watching(list[Any]):
    """States of a run; does something when the step of that number is committed."""

    def __init__(self, step: int, do: Callable[[], object]) -> None:
        super().__init__()
        self._step, self._do = step, do

    def append(self, state: Any) -> None:
        super().append(state)
        if state.step == self._step:
            self._do()


def test_a_run_whose_endpoint_dies_is_resumed(play_small: Any, wine: Any, tmp_path: Path) -> None:
    one, _ = wine
    with Service([one]) as service:
        changes = from_afar(service)
        whole = play_small(changes, name="whole")
    with Service([one], port=service.port) as mortal:
        torn = type(whole)(whole.folder, Watching(1, mortal.stop))
        with pytest.raises(RunError, match=r"model 'wine' at .*UNAVAILABLE"):
            play_small(changes, name="torn", played=torn)
    assert [record["step"] for record in torn.records] == [0, 1]

    with Service([one], port=service.port):
        rest = play_small(changes, name="torn")

    assert [state.step for state in rest.states] == [2, 3, 4]
    assert outcome(rest)[0] == outcome(whole)[0]
    assert outcome(rest)[1] == outcome(whole)[1][2:]


def test_an_endpoint_that_is_not_there_is_found_out_before_the_clients_work(
    small: Any, wine: Any, tmp_path: Path
) -> None:
    with Service([wine[0]]) as gone:
        scenario = small(from_afar(gone))
    folder = new_folder(tmp_path / "run", scenario, data_dir=None)

    with pytest.raises(RunError, match="UNAVAILABLE"):
        simulate(scenario, folder)

    assert "roster" not in folder.config()


def test_tasks_of_one_run_are_models_of_their_names(play_small: Any, small: Any) -> None:
    two = {
        "tasks.cancer.kind": "tabular",
        "tasks.cancer.source": "breast-cancer",
        "tasks.cancer.models": ["mlp-small"],
        "tasks.cancer.proxy.samples": 32,
        "rounds.count": 1,
    }
    trained = play_small({**two, "teacher.kind": "model"}, name="trained")
    models = {one.name: one for one in server_models(trained.folder)}
    assert {name: (one.spec.input_shape, one.spec.classes[0]) for name, one in models.items()} == {
        "wine": ((13,), "class_0"),
        "cancer": ((30,), "malignant"),
    }

    with Service(list(models.values())) as service:
        address = f"127.0.0.1:{service.port}"
        taught = play_small({**two, "teacher.kind": "remote", "teacher.address": address}, name="taught")
        asked = {name: service.counts(name).rows for name in models}

    assert asked == {"wine": 40, "cancer": 32}
    shares = simulated(small(two), None)
    for name, task in taught.states[-1].tasks.items():
        answer = models[name].soft(models[name].answer([shares[name].proxy.inputs.numpy()], block=16))
        np.testing.assert_allclose(task.knowledge.values, answer.numpy(), rtol=1e-5)
