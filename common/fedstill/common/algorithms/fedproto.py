"""FedProto: clients draw the features of each class to where they lie on the mean over all clients.

Tan et al. 2022, https://arxiv.org/abs/2105.00243, algorithm 1. With f_k(x) what the last layer of client k's model
reads, and D_kc its n_kc examples of class c:

    prototypes  C_k(c) = (1/n_kc) Σ_{x ∈ D_kc} f_k(x)
    merge       C̄(c) = Σ_k n_kc C_k(c) / Σ_k n_kc
    local       student ← argmin CE(y, p(x)) + λ · ‖f_k(x) − C̄(y)‖² / D on the private data

No proxy set is needed; C × D numbers are sent. All clients' features need one width D: it is the models' own, or
`width`, to which each brings its features by averaging neighbours, for prototypes and distance alone.

Deviations: the distance is that of each example, mean over coordinates, where the paper has that of class means; the
paper divides the weighted sum by the number of clients once more, which would draw every prototype to 0; its models
answer with the nearest prototype's class, these with their own last layer; `width` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from fedstill.common import check
from fedstill.common.errors import ConfigError, UnsupportedError
from fedstill.common.knowledge import WIDEST_FEATURES, Contribution, Knowledge, Prototypes
from fedstill.common.prototypes import class_means, features_over, from_means, mean_prototypes
from fedstill.common.sides import Client, Server, prototypes_of

_TOLD, _THERE = "fedproto.told", "fedproto.there"


@dataclass(frozen=True, slots=True)
class FedProto:
    """Students draw each class's features to their mean over all clients; no proxy set is needed.

    Attributes:
        weight: λ of the distance beside the task's own loss.
        width: to which features are brought by averaging neighbours; 0 for models of one width, as they are.
    """

    name: ClassVar[str] = "fedproto"
    paper: ClassVar[str] = "Tan et al. 2022, https://arxiv.org/abs/2105.00243"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "prototypes"
    parts: ClassVar[frozenset[str]] = frozenset({"features"})
    homogeneous: ClassVar[bool] = False

    weight: float = 1.0
    width: int = 0

    def __post_init__(self) -> None:
        check.positive(algorithm_weight=self.weight)
        check.at_least(0, algorithm_width=self.width)
        if self.width > WIDEST_FEATURES:
            raise ConfigError(f"algorithm_width={self.width}", f"expected at most {WIDEST_FEATURES}")

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Keep the classes' prototypes, for the steps on private data."""
        values, counts = features_over(prototypes_of(received), client.spec.classes)
        client.memory |= {_TOLD: values, _THERE: (counts > 0).float()}

    def local(self, client: Client) -> Prototypes:
        """Train on private data towards the prototypes, then answer with the own ones."""
        kind, told, there = client.spec.kind, client.memory.get(_TOLD), client.memory.get(_THERE)
        if told is None or there is None:
            client.train()
        else:

            def loss(embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
                apart = distance(self._fitting(embeddings), told[labels], there[labels])
                return kind.loss(logits, labels) + self.weight * apart

            client.train_embedded(loss)
        embeddings = self._fitting(client.embedded()[0])
        classes = client.spec.classes
        means, counts = class_means(embeddings, client.private.targets, len(classes))
        return from_means(classes, counts, round=client.round, features=means)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Prototypes:
        """Mean for each class, weighted by its examples."""
        return mean_prototypes(
            [prototypes_of(c.knowledge) for c in contributions], space=server.spec.classes, round=server.round
        )

    def _fitting(self, embeddings: Tensor) -> Tensor:
        return adaptive_avg_pool1d(embeddings, self.width) if self.width else embeddings


def distance(features: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """(1/B) Σ_i w_i ‖f_i − c_i‖² / D.

    Args:
        features: (B, D).
        wanted: (B, D) each example's prototype.
        weights: (B,); 0 for an example without one.

    Raises:
        UnsupportedError: if the widths differ.
    """
    if features.shape != wanted.shape:
        raise UnsupportedError(
            f"{features.shape[-1]} features beside prototypes of {wanted.shape[-1]}",
            "expected one width on all clients, because it averages features",
            "give all clients one model, or set algorithm.width",
        )
    return ((features - wanted).square().mean(-1) * weights).mean()
