"""One-shot federated learning: clients train to the end and speak once; the best of them make the ensemble.

Guha, Talwalkar & Smith 2019, https://arxiv.org/abs/1902.11175. With the predictions p_k(x) on proxy sample x of client
k's model, trained to the end, and S the M chosen clients:

    local    student ← private data, a part V_k of which is kept for validation;  s_k = exp(−mean loss on V_k)
    merge    S = the M clients of the largest s_k (validation), or n_k (examples), or any M (random)
             q(x) = (1/M) Σ_{k ∈ S} p_k(x)
    absorb   student ← argmin KL( q(x) ‖ p(x) ) on the proxy samples, once, when all is told

A run has one round: `training.epochs` is all that a student trains.

Deviations: clients send predictions where the paper's send models, which makes the same ensemble and lets models
differ; only the M best are chosen, where the paper also knows a baseline below which a client keeps silent; s_k is a
likelihood, which every kind of output has, where the paper has the area under the ROC curve. The paper's distilled
model is the teacher `model`; here the clients learn from the ensemble too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.seeding import numpy_rng, torch_rng
from fedstill.common.sides import Client, Server, soft_labels_of
from fedstill.common.task import Examples

Selection = Literal["validation", "examples", "random"]


@dataclass(frozen=True, slots=True)
class OneShot:
    """Clients train to the end and speak once; the best of them make the ensemble that all learn from.

    Attributes:
        selection: whom the ensemble is made of: those of the best validation, or with the most examples, or any.
        members: of the ensemble, at most.
        validation: part of the private examples that selection by validation keeps aside.
        distil_epochs: passes over the proxy samples at the end.
    """

    name: ClassVar[str] = "one-shot"
    paper: ClassVar[str] = "Guha et al. 2019, https://arxiv.org/abs/1902.11175"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False
    one_round: ClassVar[bool] = True

    selection: Selection = "validation"
    members: int = 10
    validation: float = 0.2
    distil_epochs: int = 20

    def __post_init__(self) -> None:
        check.one_of(("validation", "examples", "random"), algorithm_selection=self.selection)
        check.at_least(1, algorithm_members=self.members, algorithm_distil_epochs=self.distil_epochs)
        if not 0 < self.validation < 1:
            raise ConfigError(
                f"algorithm_validation={self.validation}",
                "expected 0 < value < 1",
                'selection = "examples" keeps nothing aside',
            )

    def start(self, server: Server) -> None:
        """Nothing to tell before the answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the ensemble."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data to the end, then answer on the proxy samples, with a score of the validation."""
        if self.selection != "validation":
            client.train()
            return client.soft_labels()
        order = torch.randperm(len(client.private), generator=torch_rng(client.seed, "validation"))
        # A client with one example trains on it and has nothing to show.
        kept = min(max(1, int(self.validation * len(order))), len(order) - 1)
        client.train_on(client.private.take(order[kept:]))
        answer = client.soft_labels()
        return replace(answer, score=_likelihood(client, client.private.take(order[:kept])) if kept else 0.0)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Mean of the chosen members' answers, each with the same weight."""
        chosen = self._chosen(server, contributions)
        return mean_soft_labels([soft_labels_of(c.knowledge) for c in chosen], space=server.spec.classes)

    def _chosen(self, server: Server, contributions: Sequence[Contribution]) -> list[Contribution]:
        named = sorted(contributions, key=lambda c: c.client)
        if self.selection == "random":
            rows = numpy_rng(server.seed, "members").permutation(len(named))[: self.members]
            return [named[row] for row in sorted(rows)]
        if self.selection == "examples":
            return sorted(named, key=lambda c: -c.examples)[: self.members]
        return sorted(named, key=lambda c: -soft_labels_of(c.knowledge).score)[: self.members]


def _likelihood(client: Client, examples: Examples) -> float:
    """Exp of minus the task's own loss, from 0 to 1: for classes, the geometric mean of what the right ones got."""
    kind = client.spec.kind
    logits = client.predict(kind.forced(examples.inputs, examples.targets))
    return min(1.0, float(torch.exp(-kind.loss(logits, examples.targets))))
