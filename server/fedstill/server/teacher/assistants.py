"""Teacher assistants: between a big teacher and small students stands a chain of models, each smaller than the last.

Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393: a student learns less from a teacher that is much larger than
itself than from a model of a size in between that the teacher has taught. Here the task's teacher distils the
consensus, each assistant distils its predecessor's soft labels, and the last one's answers go back to the clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fedstill.common import check
from fedstill.common.errors import ConfigError, nearest
from fedstill.common.knowledge import SoftLabels
from fedstill.common.models import build_model, check_model, model_names
from fedstill.common.seeding import derive
from fedstill.common.sides import Server, taught

_KEY = "assistant."


@dataclass(frozen=True, slots=True)
class Assistants:
    """The server's model distils the consensus, a chain of smaller models distils it; the last one's answers go back.

    Attributes:
        models: architectures of the assistants, from large to small; () for one of the largest student's architecture.
        epochs: passes of each model over the round's proxy samples.
    """

    name: ClassVar[str] = "assistants"
    paper: ClassVar[str] = "Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393"
    has_model: ClassVar[bool] = True

    models: tuple[str, ...] = ()
    epochs: int = 5

    def __post_init__(self) -> None:
        check.at_least(1, teacher_epochs=self.epochs)
        for name in self.models:
            if name not in model_names():
                raise ConfigError(f"teacher.models: '{name}'", "expected a known model", nearest(name, model_names()))

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """Nothing before the first answers.

        Raises:
            UnsupportedError: if an assistant cannot read a task's inputs.
        """
        for server in servers.values():
            for name in self._chain(server):
                check_model(name, server.spec)
        return {}

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """Hand each task's consensus down the chain."""
        return {name: self._handed_down(servers[name], labels) for name, labels in consensus.items()}

    def _handed_down(self, server: Server, consensus: SoftLabels) -> SoftLabels:
        labels = taught(server, consensus, epochs=self.epochs)
        for number, name in enumerate(self._chain(server)):
            assistant = _assistant(server, number, name)
            labels = taught(assistant, labels, epochs=self.epochs)
            weights = assistant.model.state_dict()
            server.memory |= {f"{_KEY}{number}.{key}": value.clone() for key, value in weights.items()}
        return labels

    def _chain(self, server: Server) -> tuple[str, ...]:
        students = sorted(server.clients, key=lambda client: client.parameters)
        return self.models or (students[-1].model if students else server.model_name,)


def _assistant(server: Server, number: int, name: str) -> Server:
    """The server's side with an assistant for its model: as it was after the last round, or new."""
    seed = derive(server.seed, "assistant", number)
    model = build_model(name, server.spec, seed=seed)
    prefix = f"{_KEY}{number}."
    before = {key.removeprefix(prefix): value for key, value in server.memory.items() if key.startswith(prefix)}
    if before:
        model.load_state_dict(before)
    return replace(server, model_name=name, model=model, memory={}, seed=seed)
