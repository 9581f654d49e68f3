"""fedstill's own method: the mean of all predictions, hardened so that every class keeps its share.

With client k's probabilities p_k(x) on the proxy samples x:

    mean        p̄(x) = (1/K) Σ_k p_k(x)
    harden      q_c(x) ∝ b_c · p̄_c(x)^(1/T), with b such that Σ_x q_c(x) = Σ_x p̄_c(x) for every class c
    distil      student ← q on the proxy samples

A mean of careful opinions is more careful than any of them: where one client of three is sure of a rare class, the mean
says the frequent one, and students unlearn the rare ones. Sharpening as in DS-FL (Itahara et al. 2021,
https://arxiv.org/abs/2008.06180) makes that worse, since what is frequent grows. The mean's class shares, though, are
about right, even where its likeliest class is not. Keeping them is the distribution alignment of semi-supervised
learning (Berthelot et al. 2020, https://arxiv.org/abs/1911.09785, section 3.1), here towards the consensus' own shares,
found by Newton's steps. Kinds of output without classes to share (numbers, heat maps, rankings, sequences) get the
plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import hardened, mean_soft_labels
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of


@dataclass(frozen=True, slots=True)
class Fedstill:
    """Students learn from the mean prediction, hardened so that every class keeps its share.

    Attributes:
        temperature: T of the hardening; 1 leaves the mean as it is.
        distil_epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "fedstill"
    paper: ClassVar[str] = "none yet; after Berthelot et al. 2020, https://arxiv.org/abs/1911.09785"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    temperature: float = 0.3
    distil_epochs: int = 2

    def __post_init__(self) -> None:
        check.positive("consensus labels go as p^(1/temperature)", algorithm_temperature=self.temperature)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the hardened labels."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples."""
        client.train()
        return client.soft_labels()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Mean of the answers, hardened."""
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
        return hardened(mean, self.temperature)
