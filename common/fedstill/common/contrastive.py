"""Features learnt from unlabelled samples: two random views of one are to look alike, those of others not.

SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709, equation 1. With the projected features u_1 … u_2B of both
views of a batch of B samples, s(u, v) their cosine, and u_j the other view of u_i:

    NT-Xent   (1/2B) Σ_i −ln [ exp(s(u_i, u_j) / τ) / Σ_{m ≠ i} exp(s(u_i, u_m) / τ) ]

Views are those of `augment`. Deviations: no large batches, no schedule and no LARS; the projector has `_WIDTH` units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fedstill.common.augment import View, view_of
from fedstill.common.learning import fit
from fedstill.common.network import FeatureReader, feature_network
from fedstill.common.seeding import derive, torch_rng, torch_seeded
from fedstill.common.sides import Side

_WIDTH = 64
_TEMPERATURE = 0.5


class Contrasted(nn.Module):
    """A network that answers a batch with the projected features of two views of it, side by side: (N, 2 W)."""

    def __init__(self, reader: FeatureReader, view: View, chance: torch.Generator) -> None:
        super().__init__()
        self.reader = reader
        self._view = view
        self._chance = chance

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of two views."""
        return torch.cat([self.reader(self._view(inputs, self._chance)) for _ in range(2)], dim=-1)


def pretrain(side: Side, *, epochs: int) -> float:
    """Train the body of a side's model on the proxy set, without labels.

    Args:
        side: whose model is trained; its head stays as it is.
        epochs: passes over the proxy set.

    Returns:
        Mean loss of the last epoch; NaN where the modality has no views, and nothing was trained.

    Raises:
        UnsupportedError: if the model has no features that can be learnt.
    """
    network = feature_network(side.model, side.model_name)
    view = view_of(side.spec.modality, side.training)
    if view is None:
        return float("nan")
    seed = derive(side.seed, "pretrain")
    width = side.features(side.samples[:1]).shape[1]
    with torch_seeded(seed, "weights"):
        projector = nn.Sequential(nn.Linear(width, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH))
    return fit(
        Contrasted(FeatureReader(network, projector), view, torch_rng(seed, "views")),
        side.proxy.inputs,
        (),
        lambda both: nt_xent(both[:, :_WIDTH], both[:, _WIDTH:], temperature=_TEMPERATURE),
        training=side.training,
        epochs=epochs,
        seed=seed,
    )


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of finding each row's other view among all rows.

    Args:
        first: (B, W) features of one view of each sample.
        second: (B, W) of another.
        temperature: τ > 0.
    """
    rows = normalize(torch.cat([first, second]), dim=-1)
    count = len(first)
    alike = (rows @ rows.T / temperature).masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
    others = torch.arange(2 * count).roll(count)
    return cross_entropy(alike, others)
