"""FedMD: clients match the mean of everybody's predictions on the proxy set, then return to their own data.

Li & Wang 2019, https://arxiv.org/abs/1910.03581, algorithm 1. With client k's class scores f_k(x) on proxy sample x:

    communicate  f̃(x) = (1/K) Σ_k f_k(x)
    digest       student ← f̃ on the proxy samples
    revisit      student ← private data

Deviations: (1) the exchanged scores are probabilities at a temperature and the digest minimises T²·KL, because a mean
of raw logits falls to one client that scales its own; `scores = "logits"` gives the authors' raw scores with mean
absolute difference. (2) The paper first trains every model on a labelled public set; our proxy set has no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.knowledge import Contribution, Form, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of


@dataclass(frozen=True, slots=True)
class FedMD:
    """Students match the mean of everybody's predictions on the proxy set.

    Attributes:
        temperature: of the exchanged probabilities.
        digest_epochs: passes over the proxy samples in one round.
        scores: "probabilities" or "logits".
    """

    name: ClassVar[str] = "fedmd"
    paper: ClassVar[str] = "Li & Wang 2019, https://arxiv.org/abs/1910.03581"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    temperature: float = 1.0
    digest_epochs: int = 2
    scores: Form = "probabilities"

    def __post_init__(self) -> None:
        check.positive("soft labels are softmax(z / temperature)", algorithm_temperature=self.temperature)
        check.at_least(1, algorithm_digest_epochs=self.digest_epochs)
        check.one_of(("probabilities", "logits"), algorithm_scores=self.scores)

    @property
    def asked(self) -> tuple[Form, float]:
        """Form and temperature of the clients' answers."""
        return self.scores, self.temperature

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Digest: match the consensus on the proxy samples."""
        client.distil(soft_labels_of(received), epochs=self.digest_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Revisit the private data, then answer on the proxy samples."""
        client.train()
        return client.soft_labels(temperature=self.temperature, form=self.scores)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Mean of the answers, every client with the same weight."""
        return mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
