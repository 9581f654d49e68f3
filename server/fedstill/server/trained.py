"""The models that a run has trained on the server, from the run's newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedstill.common.errors import RunFolderError, UnsupportedError
from fedstill.common.scenario import Scenario
from fedstill.server import checkpoint
from fedstill.server.folder import RunFolder
from fedstill.server.launch import build_teacher
from fedstill.server.merging import keeps_model


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model's weights.

    Attributes:
        name: architecture.
        weights: by name.
        step: after which they were.
    """

    name: str
    weights: Mapping[str, Tensor]
    step: int


def trained_models(folder: RunFolder) -> dict[str, Trained]:
    """The server's models of a run's newest sound step, by task.

    Raises:
        RunFolderError: if nothing was committed, or every checkpoint is damaged.
        UnsupportedError: if the run trains none.
    """
    config, scenario = folder.config(), folder.scenario()
    if not keeps_model(scenario.algorithm, build_teacher(scenario.teacher)):
        raise UnsupportedError(
            f"model on the server of run {folder.path} (algorithm '{scenario.algorithm.name}', "
            f"teacher '{scenario.teacher.name}')",
            "expected a server with a model",
            "take a client's student (--client NAME), or train with teacher.kind = 'model'",
        )
    state = checkpoint.newest(folder.path / "checkpoints")
    if state is None or not state.step:
        raise RunFolderError(f"run folder {folder.path}", "expected a committed round", "resume the run first")
    return {
        name: Trained(_architecture(scenario, config, name), task.model, state.step)
        for name, task in state.tasks.items()
    }


def _architecture(scenario: Scenario, config: Mapping[str, Any], task: str) -> str:
    # A method that sends weights averages into the clients' architecture.
    told = [tasks[task]["model"] for tasks in config.get("roster", {}).values() if task in tasks]
    return str(told[0]) if scenario.algorithm.homogeneous and told else scenario.tasks[task].server_model
