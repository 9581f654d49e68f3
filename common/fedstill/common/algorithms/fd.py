"""FD: clients match the mean prediction that the others have for examples of the same class. The first of its kind.

Jeong et al. 2018, https://arxiv.org/abs/1811.11479, algorithm 1. With client k's mean prediction for its examples of
class c, F_k(c) = mean of softmax(z_k(x)), and K_c clients that have such examples:

    merge    F̄(c) = (1/K_c) Σ_k F_k(c)
    absorb   F̂_k(c) = (K_c F̄(c) − F_k(c)) / (K_c − 1), the mean over the others
    local    student ← argmin CE(y, p(x)) + γ · CE(F̂_k(y), p(x)) on the private data

No proxy set is needed; C × C numbers are sent. The paper's server sends each client its own F̂_k; here all get F̄, and
each takes out its own share, which it remembers with the round that it was sent in.

Deviations: F_k is taken by the trained model in evaluation mode, where the paper averages along the local steps; a
class that nobody else has gets no second term; a client that lost its memory takes F̄ for F̂_k; F̂_k is over the classes
that the client's model knows, brought to a sum of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.knowledge import Contribution, Knowledge, Prototypes
from fedstill.common.prototypes import class_means, from_means, mean_prototypes, predictions_over
from fedstill.common.sides import Client, Server, prototypes_of

_OWN, _ROUND, _VOICES, _TOLD, _THERE = "fd.own", "fd.round", "fd.voices", "fd.told", "fd.there"


@dataclass(frozen=True, slots=True)
class FD:
    """Students match the others' mean prediction for their own class; no proxy set is needed.

    Attributes:
        weight: γ of the others' mean beside the task's own loss.
    """

    name: ClassVar[str] = "fd"
    paper: ClassVar[str] = "Jeong et al. 2018, https://arxiv.org/abs/1811.11479"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "prototypes"
    parts: ClassVar[frozenset[str]] = frozenset({"predictions"})
    homogeneous: ClassVar[bool] = False

    weight: float = 0.1

    def __post_init__(self) -> None:
        check.positive(algorithm_weight=self.weight)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Keep what the others say of each class, for the steps on private data."""
        told = prototypes_of(received)
        memory = client.memory
        counted = _OWN in memory and int(memory[_ROUND]) == told.round
        own = (memory[_OWN], memory[_VOICES]) if counted else None
        values, voices = predictions_over(told, client.spec.classes, without=own)
        memory |= {_TOLD: values, _THERE: (voices > 0).float()}

    def local(self, client: Client) -> Prototypes:
        """Train on private data towards the others' means, then answer with the own ones."""
        kind, told, there = client.spec.kind, client.memory.get(_TOLD), client.memory.get(_THERE)
        if told is None or there is None:
            client.train()
        else:

            def loss(logits: Tensor, labels: Tensor) -> Tensor:
                return kind.loss(logits, labels) + self.weight * cross_entropy(logits, told[labels], there[labels])

            client.train(loss)
        logits = client.predict(client.private.inputs)
        classes = client.spec.classes
        means, counts = class_means(torch.softmax(logits, -1), client.private.targets, len(classes))
        voices = (counts > 0).long()
        client.memory |= {_OWN: means, _VOICES: voices, _ROUND: torch.tensor(client.round)}
        return from_means(classes, voices, round=client.round, predictions=means)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Prototypes:
        """Mean for each class, every client that has it with the same weight."""
        return mean_prototypes(
            [prototypes_of(c.knowledge) for c in contributions], space=server.spec.classes, round=server.round
        )


def cross_entropy(logits: Tensor, soft: Tensor, weights: Tensor) -> Tensor:
    """−(1/B) Σ_i w_i Σ_c q_ic ln softmax(z_i)_c.

    Args:
        logits: (B, C).
        soft: (B, C).
        weights: (B,); 0 for an example without a teacher.
    """
    return -((soft * torch.log_softmax(logits, -1)).sum(-1) * weights).mean()
