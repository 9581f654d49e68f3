"""Cronus: clients learn from a robust mean of everybody's predictions, which few false ones move little.

Chang et al. 2019, https://arxiv.org/abs/1912.11279. With client k's probabilities p_k(x) on public sample x:

    merge    q(x) = robust mean of p_1(x) … p_K(x), by the filter of Diakonikolas et al. 2017,
             https://arxiv.org/abs/1703.00893: see `robust.filter_weights`
    absorb   student ← q on the proxy samples
    local    student ← private data

Deviations: public and private samples are learnt one after the other, where the paper trains on their union; the filter
lowers weights and draws nothing. It is not for answers with positions (texts, heat maps, sequences), where a sample is
more than one vector, nor for numbers without bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common import check
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.robust import robust_soft_labels
from fedstill.common.sides import Client, Server, soft_labels_of


@dataclass(frozen=True, slots=True)
class Cronus:
    """Students learn from a robust mean of everybody's predictions, which few false ones move little.

    Attributes:
        corrupted: ε, the part of the clients that may be false, below ½.
        distil_epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "cronus"
    paper: ClassVar[str] = "Chang et al. 2019, https://arxiv.org/abs/1912.11279"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical", "multi-label", "ranking"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    corrupted: float = 0.2
    distil_epochs: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.corrupted < 0.5:
            raise ConfigError(f"algorithm_corrupted={self.corrupted}", "expected 0 < value < 0.5", "fedmd has the mean")
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the robust mean."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples."""
        client.train()
        return client.soft_labels()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Robust mean of the answers, every client with the same weight at first."""
        opinions = [soft_labels_of(c.knowledge) for c in contributions]
        return robust_soft_labels(opinions, corrupted=self.corrupted, space=server.spec.classes)
