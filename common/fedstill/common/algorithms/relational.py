"""Relational distillation: clients agree on how far proxy samples lie apart, not on what they are called.

Park et al. 2019, https://arxiv.org/abs/1904.05068, section 3.2.1. With client k's features f_k(x) of proxy sample x:

    relations   ψ_k(x, y) = ‖f_k(x) − f_k(y)‖ / mean over all pairs                              (eq. 4)
    merge       ψ(x, y) = (1/K) Σ_k ψ_k(x, y), over their mean
    absorb      student ← argmin L_task + w · mean over the pairs of a batch of Huber(ψ(x, y) − ψ_s(x, y))    (eq. 5, 7)

No label is involved: clients whose label spaces do not meet, and whose features have other widths, can learn from each
other. Deviations: the teacher is the mean over clients, where the paper has one trained model; within a batch both
sides are over the batch's own mean, as the paper has it for one network; the angle-wise loss is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.geometry import mean_relations, pairs, relations, relative_distances
from fedstill.common.knowledge import Contribution, Knowledge, Relations
from fedstill.common.sides import Client, Server, relations_of


@dataclass(frozen=True, slots=True)
class Relational:
    """Students agree on how far proxy samples lie apart in their features; no label is exchanged.

    Attributes:
        weight: w of the distances beside the task's own loss.
        epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "relational"
    paper: ClassVar[str] = "Park et al. 2019, https://arxiv.org/abs/1904.05068"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "relations"
    homogeneous: ClassVar[bool] = False

    weight: float = 10.0
    epochs: int = 2

    def __post_init__(self) -> None:
        check.positive(algorithm_weight=self.weight)
        check.at_least(1, algorithm_epochs=self.epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn the distances, and the own task with them."""
        told = relations_of(received)
        distances = torch.from_numpy(told.values)

        def loss(features: Tensor, places: Tensor) -> Tensor:
            return relation_loss(features, distances[places][:, places])

        client.train_features(told.samples, loss, weight=self.weight, epochs=self.epochs)

    def local(self, client: Client) -> Relations:
        """Train on private data, then answer with the distances between the proxy samples."""
        client.train()
        return relations(client.features(), client.samples)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Relations:
        """Mean of the distances, every client with the same weight."""
        return mean_relations([relations_of(c.knowledge) for c in contributions])


def relation_loss(features: Tensor, wanted: Tensor) -> Tensor:
    """Mean Huber loss (threshold 1) between relative distances; 0 for a batch of one sample.

    Args:
        features: (B, D).
        wanted: (B, B) distances of the teacher, in any unit.
    """
    if len(features) < 2:
        return features.sum() * 0
    theirs = pairs(wanted)
    theirs = theirs / theirs.mean().clamp_min(torch.finfo(theirs.dtype).tiny)
    return smooth_l1_loss(relative_distances(features), theirs)
