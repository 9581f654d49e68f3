"""A torch model on the server is distilled from the consensus, and its soft labels go back to the clients.

The model remembers over rounds and smooths over samples, which a consensus of one round cannot. The idea is that of
CFD's dual distillation (Sattler et al. 2021, https://arxiv.org/abs/2012.00632, section III-A), and of the auxiliary
model in the method `mhat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common import check
from fedstill.common.knowledge import SoftLabels
from fedstill.common.sides import Server, taught


@dataclass(frozen=True, slots=True)
class Model:
    """A model on the server distils the consensus; its soft labels go back.

    Attributes:
        epochs: passes over the round's proxy samples.
    """

    name: ClassVar[str] = "model"
    paper: ClassVar[str] = "Sattler et al. 2021, https://arxiv.org/abs/2012.00632"
    has_model: ClassVar[bool] = True

    epochs: int = 5

    def __post_init__(self) -> None:
        check.at_least(1, teacher_epochs=self.epochs)

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """Nothing before the first answers."""
        return {}

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """Distil each task's consensus into its model, then answer on the round's samples at the same temperature."""
        return {name: taught(servers[name], labels, epochs=self.epochs) for name, labels in consensus.items()}
