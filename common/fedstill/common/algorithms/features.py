"""Feature distillation: clients learn the directions in which their features of proxy samples agree.

A common space of features of different widths by MAXVAR canonical correlation (Kettenring 1971,
https://doi.org/10.1093/biomet/58.3.433), then hints (FitNets, Romero et al. 2015, https://arxiv.org/abs/1412.6550,
eq. 3). With client k's features F_k (N, D_k) of N proxy samples, centred and whitened to W_k:

    merge    U Σ Vᵀ = [W_1 … W_K],  G = √N · U's first `width` columns
    absorb   student ← argmin L_task + w · ‖F_s P − G‖² / (N · width),  P a linear layer of its own

No label is involved: clients whose label spaces do not meet can learn from each other. Deviations: the hint is what
several models share, where the paper has one teacher's layer; the task is learnt in the same steps, where the paper
first learns the hint alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.errors import ConfigError
from fedstill.common.geometry import common_space
from fedstill.common.knowledge import WIDEST_FEATURES, Contribution, Features, Knowledge
from fedstill.common.seeding import torch_seeded
from fedstill.common.sides import Client, Server, features_of

_PROJECTOR = "projector."


@dataclass(frozen=True, slots=True)
class FeatureHints:
    """Students learn the directions that everybody's features of proxy samples share; no label is exchanged.

    Attributes:
        width: directions of the common space.
        weight: w of the hints beside the task's own loss.
        epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "features"
    paper: ClassVar[str] = "Romero et al. 2015, https://arxiv.org/abs/1412.6550"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "features"
    homogeneous: ClassVar[bool] = False

    width: int = 16
    weight: float = 1.0
    epochs: int = 2

    def __post_init__(self) -> None:
        check.at_least(1, algorithm_width=self.width, algorithm_epochs=self.epochs)
        if self.width > WIDEST_FEATURES:
            raise ConfigError(f"algorithm_width={self.width}", f"expected at most {WIDEST_FEATURES}")
        check.positive(algorithm_weight=self.weight)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn the common features through a linear layer, and the own task with them."""
        told = features_of(received)
        hints = torch.from_numpy(told.values)
        projector = _projector(client, told)

        def loss(projected: Tensor, places: Tensor) -> Tensor:
            return mse_loss(projected, hints[places])

        client.train_features(told.samples, loss, weight=self.weight, epochs=self.epochs, projector=projector)
        client.memory |= {_PROJECTOR + key: value for key, value in projector.state_dict().items()}

    def local(self, client: Client) -> Features:
        """Train on private data, then answer with the features of the proxy samples."""
        client.train()
        return Features(client.samples, client.features().numpy())

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Features:
        """The space that all answers have in common."""
        return common_space([features_of(c.knowledge) for c in contributions], width=self.width)


def _projector(client: Client, told: Features) -> nn.Linear:
    """The client's own from the rounds before; a new one if there is none."""
    width = client.features(told.samples[:1]).shape[1]
    with torch_seeded(client.seed, "projector"):
        projector = nn.Linear(width, told.values.shape[1])
    kept = {key.removeprefix(_PROJECTOR): value for key, value in client.memory.items() if key.startswith(_PROJECTOR)}
    if kept:
        projector.load_state_dict(kept)
    return projector
