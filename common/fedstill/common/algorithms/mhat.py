"""MHAT: the server trains an auxiliary model on everybody's predictions, and clients learn from that model.

Hu et al. 2021, https://doi.org/10.1016/j.ins.2021.01.046. With client k's probabilities p_k(x) on public sample x, and
the auxiliary model's weights θ:

    answer   p_k(x) = softmax(z_k(x) / T)
    merge    p̄(x) = (1/K) Σ_k p_k(x)
             θ ← argmin T² · KL( p̄(x) ‖ softmax(z(x; θ) / T) ) on the proxy samples
             q(x) = softmax(z(x; θ) / T)
    absorb   student ← argmin T² · KL( q(x) ‖ softmax(z(x) / T) ) on the proxy samples
    local    student ← private data

The auxiliary model is the server's, of the architecture that the task names as `teacher`; it is kept over rounds. It is
a teacher already, so that no other one goes with this method.

Deviations: written after the paper's abstract and what surveys say of it, for its text is not open; the mean gives
every client the same weight; the auxiliary model starts from random weights. A class that no client of a round knows is
left out of q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.knowledge import Contribution, Form, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of, taught


@dataclass(frozen=True, slots=True)
class MHAT:
    """Students learn from a model of the server that has learnt from everybody's predictions.

    Attributes:
        temperature: of the exchanged probabilities.
        auxiliary_epochs: passes of the server's model over the proxy samples in one round.
        distil_epochs: passes of a student over them.
    """

    name: ClassVar[str] = "mhat"
    paper: ClassVar[str] = "Hu et al. 2021, https://doi.org/10.1016/j.ins.2021.01.046"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False
    teaches: ClassVar[bool] = True

    temperature: float = 1.0
    auxiliary_epochs: int = 5
    distil_epochs: int = 2

    def __post_init__(self) -> None:
        check.positive("soft labels are softmax(z / temperature)", algorithm_temperature=self.temperature)
        check.at_least(1, algorithm_auxiliary_epochs=self.auxiliary_epochs)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    @property
    def asked(self) -> tuple[Form, float]:
        """Form and temperature of the clients' answers."""
        return "probabilities", self.temperature

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the auxiliary model's predictions."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples."""
        client.train()
        return client.soft_labels(temperature=self.temperature)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Train the auxiliary model towards the mean of the answers; its own predictions go back."""
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
        return taught(server, mean, epochs=self.auxiliary_epochs)
