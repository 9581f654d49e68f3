"""DS-FL: the mean prediction is sharpened before clients learn from it (entropy reduction aggregation).

Itahara et al. 2021, https://arxiv.org/abs/2008.06180, section 3. With client k's probabilities p_k(x) on open sample x:

    simple aggregation      p̄(x) = (1/K) Σ_k p_k(x)
    entropy reduction       q(x) = softmax(p̄(x) / T), T = 0.1
    distillation            student ← cross-entropy to q

Deviations: distillation minimises KL(q ‖ p) instead of the cross-entropy, which differs by a constant; the paper trains
a separate server model in the same way, which here is the teacher's business (`teacher.kind = "model"`); the new random
open samples of each round are the scenario's `proxy.per-round`. It is not for heat maps of objects, whose peaks it
flattens, nor for words of a large vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common import check
from fedstill.common.ensemble import mean_soft_labels, sharpened
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of


@dataclass(frozen=True, slots=True)
class DSFL:
    """Students learn from the sharpened mean of everybody's predictions (ERA).

    Attributes:
        temperature: T of the entropy reduction; the smaller, the harder the labels.
        distil_epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "dsfl"
    paper: ClassVar[str] = "Itahara et al. 2021, https://arxiv.org/abs/2008.06180"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical", "multi-label", "token-level", "ranking"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    temperature: float = 0.1
    distil_epochs: int = 2

    def __post_init__(self) -> None:
        check.positive("the aggregate is softmax(mean / temperature)", algorithm_temperature=self.temperature)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the sharpened labels."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples."""
        client.train()
        return client.soft_labels()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Entropy reduction of the mean answer."""
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
        return sharpened(mean, self.temperature)
