"""A model trained elsewhere teaches from the first round on, before any client has spoken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedstill.common import check
from fedstill.common.errors import ConfigError, DataError, UnsupportedError
from fedstill.common.files import write_atomically
from fedstill.common.knowledge import Form, SoftLabels
from fedstill.common.sides import Server, taught


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model from a safetensors file teaches from the start; it goes on learning from the consensus.

    Attributes:
        path: the weights, as torch's state_dict of the task's teacher architecture; "{task}" stands for the task.
        epochs: passes over the round's proxy samples when it learns from the consensus; 0 leaves it as it is.
        temperature: of the soft labels with which the run starts.
        form: "probabilities" or "logits", as the algorithm exchanges them.
    """

    name: ClassVar[str] = "pretrained"
    paper: ClassVar[str] = ""
    has_model: ClassVar[bool] = True

    path: str = ""
    epochs: int = 1
    temperature: float = 1.0
    form: Form = "probabilities"

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("teacher.path=''", "expected a safetensors file", "set teacher.path")
        check.at_least(0, teacher_epochs=self.epochs)
        check.positive(teacher_temperature=self.temperature)

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """Load the weights of each task and answer on the first proxy samples.

        Raises:
            DataError: if the file is missing or broken.
            UnsupportedError: if it holds another architecture's weights.
        """
        return {name: self._loaded(server) for name, server in servers.items()}

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """Distil each task's consensus, then answer on the round's samples at the same temperature."""
        return {name: taught(servers[name], labels, epochs=self.epochs) for name, labels in consensus.items()}

    def _loaded(self, server: Server) -> SoftLabels:
        weights = read_weights(Path(self.path.replace("{task}", server.spec.name)))
        own = {name: tuple(value.shape) for name, value in server.model.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in weights.items()}
        if own != theirs:
            differing = sorted(set(own.items()) ^ set(theirs.items()))[:3]
            raise UnsupportedError(
                f"{self.path}: weights {differing}",
                f"expected those of '{server.model_name}' with {len(server.spec.classes)} classes",
                "set the task's 'teacher' to the architecture that was trained",
            )
        server.model.load_state_dict(weights)
        return server.soft_labels(temperature=self.temperature, form=self.form)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights into a safetensors file that `Pretrained` reads.

    Raises:
        StorageError: if the disk refuses.
    """
    from safetensors.torch import save

    # Training leaves convolutions in channels-last layout, which safetensors refuses.
    weights = {name: t.clone(memory_format=torch.contiguous_format) for name, t in model.state_dict().items()}
    write_atomically(path, save(weights))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A model's weights from a safetensors file.

    Raises:
        DataError: if it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(f"teacher.path='{path}'", f"cannot be read: {error}", "name a safetensors file") from None
