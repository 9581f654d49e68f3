"""From a run folder to models that can be asked; the data is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedstill.common.errors import RunFolderError
from fedstill.common.models import build_model
from fedstill.common.task import TaskSpec
from fedstill.server.folder import RunFolder
from fedstill.server.holdings import spec_from_table
from fedstill.server.serving.model import Served
from fedstill.server.trained import trained_models


def server_models(folder: RunFolder) -> list[Served]:
    """The server's models of a run's last committed step, each under its task's name; the version is the step.

    Raises:
        RunFolderError: if no round was committed, or the folder is of a version that did not write what is needed.
        UnsupportedError: if the run's server has no model.
    """
    labels = folder.config().get("labels", {})
    return [
        served(
            folder,
            spec_of(folder, name, labels[name]),
            architecture=one.name,
            weights=one.weights,
            version=one.step,
        )
        for name, one in trained_models(folder).items()
    ]


def spec_of(folder: RunFolder, task: str, classes: list[str]) -> TaskSpec:
    """A task of a run, over a label space.

    Raises:
        RunFolderError: if the run's folder does not say what its models read.
    """
    return spec_from_table(task, _tables(folder)[task], classes)


def served(
    folder: RunFolder, spec: TaskSpec, *, architecture: str, weights: Mapping[str, Tensor], version: int
) -> Served:
    """A model of a run, from its weights.

    Raises:
        RunFolderError: if the weights are another architecture's.
    """
    model = build_model(architecture, spec, seed=0)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise RunFolderError(
            f"run folder {folder.path}: weights of task '{spec.name}'",
            f"expected those of '{architecture}': {str(error).splitlines()[-1].strip()}",
        ) from None
    model.eval().requires_grad_(False)
    return Served(
        name=spec.name,
        version=str(version),
        spec=spec,
        architecture=architecture,
        model=model,
        training=folder.scenario().training,
        proxy=_tables(folder)[spec.name]["proxy"],
        run=folder.name,
    )


def _tables(folder: RunFolder) -> Mapping[str, Any]:
    config = folder.config()
    if "specs" not in config:
        raise RunFolderError(
            f"run folder {folder.path}",
            "config.toml does not say what the models read, for no client has introduced itself to this version",
            "play the run again",
        )
    tables: Mapping[str, Any] = config["specs"]
    return tables
