"""FedHKD: class means of features, and of soft predictions, say how a class looks and what to answer to its look.

Chen et al. 2023, https://arxiv.org/abs/2301.08968, algorithm 1. With h_k(x) what the last layer g_k of client k's model
reads, and its n_kc examples of class c:

    answer   h̄_k(c) = mean of h_k(x) + noise, q̄_k(c) = mean of softmax(z_k(x) / T)
    merge    H(c) = Σ_k n_kc h̄_k(c) / Σ_k n_kc,  Q(c) = Σ_k n_kc q̄_k(c) / Σ_k n_kc
    local    student ← argmin CE(y, p(x)) + λ · mean over classes of ‖Q(c) − softmax(g_k(H(c)) / T)‖
                              + γ · mean over examples of ‖h_k(x) − H(y)‖ on the private data

No proxy set is needed; C × (D + C) numbers are sent, and all clients' features need one width D.

Deviations: weights are not averaged besides, so that models may differ; every class with an example is told, where the
paper has a least number; the noise has no privacy accounting here, and is on the features alone. The authors' code has
KL(Q ‖ q) and the mean square in place of the two distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedstill.common import check
from fedstill.common.errors import UnsupportedError
from fedstill.common.knowledge import Contribution, Knowledge, Prototypes
from fedstill.common.network import last_layer
from fedstill.common.prototypes import class_means, features_over, from_means, mean_prototypes, predictions_over
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Client, Server, prototypes_of

_LOOK, _ANSWER, _THERE = "fedhkd.features", "fedhkd.predictions", "fedhkd.there"


@dataclass(frozen=True, slots=True)
class FedHKD:
    """Students learn each class's mean features, and the mean answer to them; no proxy set is needed.

    Attributes:
        prediction_weight: λ of the answers to the mean features beside the task's own loss.
        feature_weight: γ of the distance from them.
        temperature: T of the predictions.
        noise: standard deviation of Gaussian noise on each number of the mean features that are sent.
    """

    name: ClassVar[str] = "fedhkd"
    paper: ClassVar[str] = "Chen et al. 2023, https://arxiv.org/abs/2301.08968"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "prototypes"
    parts: ClassVar[frozenset[str]] = frozenset({"features", "predictions"})
    homogeneous: ClassVar[bool] = False

    prediction_weight: float = 0.05
    feature_weight: float = 0.05
    temperature: float = 0.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        check.positive(algorithm_prediction_weight=self.prediction_weight, algorithm_feature_weight=self.feature_weight)
        check.at_least(0, algorithm_noise=self.noise)
        check.positive("soft predictions are softmax(z / temperature)", algorithm_temperature=self.temperature)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Keep the classes' means, for the steps on private data."""
        told, classes = prototypes_of(received), client.spec.classes
        look, counts = features_over(told, classes)
        answer, answered = predictions_over(told, classes)
        client.memory |= {_LOOK: look, _ANSWER: answer, _THERE: torch.stack([counts, answered]).gt(0).float()}

    def local(self, client: Client) -> Prototypes:
        """Train on private data towards the means, then answer with the own ones."""
        classes = client.spec.classes
        if _LOOK in client.memory:
            self._train(client)
        else:
            client.train()
        embeddings, logits = client.embedded()
        both = torch.cat([embeddings, torch.softmax(logits / self.temperature, -1)], dim=-1)
        means, counts = class_means(both, client.private.targets, len(classes))
        features, predictions = means.tensor_split([embeddings.shape[1]], dim=-1)
        if self.noise:
            features = features + self.noise * torch.randn(features.shape, generator=torch_rng(client.seed, "noise"))
        return from_means(classes, counts, round=client.round, features=features, predictions=predictions)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Prototypes:
        """Mean for each class, weighted by its examples."""
        return mean_prototypes(
            [prototypes_of(c.knowledge) for c in contributions], space=server.spec.classes, round=server.round
        )

    def _train(self, client: Client) -> None:
        kind, layer = client.spec.kind, last_layer(client.model, client.model_name)
        look, answer, (there, answered) = (client.memory[key] for key in (_LOOK, _ANSWER, _THERE))
        _check_width(layer, look)

        def loss(embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            soft = torch.softmax(layer(look.to(layer.weight.dtype)).float() / self.temperature, -1)
            unlike = mean_distance(soft, answer, answered)
            apart = (lengths(embeddings - look[labels]) * there[labels]).mean()
            extra: Tensor = self.prediction_weight * unlike + self.feature_weight * apart
            return kind.loss(logits, labels) + extra

        client.train_embedded(loss)


def mean_distance(rows: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Σ_c w_c ‖r_c − q_c‖ / Σ_c w_c; 0 if all weights are.

    Args:
        rows: (C, L).
        wanted: (C, L).
        weights: (C,); 0 for a class without wanted ones.
    """
    return (lengths(rows - wanted) * weights).sum() / weights.sum().clamp_min(1)


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean length of each vector, (…, D) to (…); its gradient at 0 is 0."""
    found: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return found


def _check_width(layer: nn.Linear, look: Tensor) -> None:
    if look.shape[1] != layer.in_features:
        raise UnsupportedError(
            f"{layer.in_features} features beside prototypes of {look.shape[1]}",
            "expected one width on all clients, because it averages features",
            "give all clients one model",
        )
