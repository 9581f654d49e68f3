"""Objects in an image: a heat map of centres for each class, and the box around the object at each position.

Zhou, Wang & Krähenbühl 2019, "Objects as Points", https://arxiv.org/abs/1904.07850. The last axis holds the classes'
heat maps, then `GEOMETRY`. Deviation: width and height are logarithms of cells, so that a box counts by how many times
too large or too small it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.outputs import OutputKind, _distributions
from fedstill.common.outputs.multi_label import MultiLabel

GEOMETRY = ("width", "height", "dx", "dy")
"""The last channels: ln of width and height in cells; steps from the cell's left upper corner to the box's centre."""

LARGEST_GEOMETRY = 100.0
"""A value above this is no box but an attack or a diverged model."""

_BOXES = len(GEOMETRY)
_HEAT = MultiLabel()
_LEAST = 1e-3
"""Weight of the geometry of somebody who sees no object: where nobody sees one, all count alike."""


@dataclass(frozen=True, slots=True)
class Dense(OutputKind):
    """Heat maps of object centres, and a box at each position: (N, height, width, C + 4)."""

    name: ClassVar[str] = "dense"
    has_positions: ClassVar[bool] = True

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Sigmoid of z / T on heat maps; geometry as it is."""
        heat, geometry = _parts(logits)
        return torch.cat([_HEAT.soften(heat, temperature), geometry], -1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Penalty-reduced focal loss (eq. 1) for each centre, and the mean absolute error of geometry.

        Deviation: all positions of an object train its geometry, each by its heat, as Liu et al. 2019 do
        (TTFNet, https://arxiv.org/abs/1909.00700): few epochs have to do.

        Args:
            logits: (N, height, width, C + 4).
            targets: the same shape; heat from 0 to 1, and exactly 1 at centres.
        """
        (score, own), (heat, boxes) = _parts(logits), _parts(targets)
        chance = torch.sigmoid(score)
        centres = heat == 1
        hit = (1 - chance).square() * logsigmoid(score)
        miss = (1 - heat).pow(4) * chance.square() * logsigmoid(-score)
        focal = -torch.where(centres, hit, miss).sum() / centres.sum().clamp_min(1)
        weight = heat.amax(-1)
        distance = (weight * (own - boxes).abs().sum(-1)).sum() / weight.sum().clamp_min(1)
        return focal + distance

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """[Σ T² · KL(Bernoulli(q_c) ‖ Bernoulli(sigmoid(z_c / T))) + Σ w · |geometry − teacher's|] / Σ w.

        The first sum is over positions and classes, the others over positions, with w = max_c q_c², so that a sample
        counts by what is found in it and not by its background: there the teacher has no box to tell.
        """
        (score, own), (heat, boxes) = _parts(logits), _parts(soft)
        cross = heat * logsigmoid(score / temperature) + (1 - heat) * logsigmoid(-score / temperature)
        own_entropy = torch.xlogy(heat, heat) + torch.xlogy(1 - heat, 1 - heat)
        there = (soft != 0).any(-1)
        kl = temperature**2 * (own_entropy - cross).sum(-1) * there
        weight = heat.amax(-1).square()
        distance = weight * (own - boxes).abs().sum(-1)
        return (kl + distance).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)

    def entropy(self, soft: Tensor) -> Tensor:
        """Sum of the classes' binary entropies, mean over positions."""
        return _HEAT.entropy(_parts(soft)[0])

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Sigmoid of (2q − 1) / T on heat maps; geometry as it is."""
        heat, geometry = _parts(soft)
        return torch.cat([_HEAT.sharpen(heat, temperature), geometry], -1)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen channels; they do not depend on the others."""
        return soft[..., columns], soft.new_ones(len(soft))

    def check(self, soft: Tensor) -> None:
        """Heat from 0 to 1, and boxes of a sensible size."""
        if not torch.isfinite(soft).all():
            raise KnowledgeError("non-finite dense soft labels", "expected finite numbers", reason=Reason.NOT_FINITE)
        if not soft.numel():
            return
        if soft.shape[-1] <= _BOXES:
            raise KnowledgeError(
                f"{soft.shape[-1]} channels",
                f"expected at least one class, then {', '.join(GEOMETRY)}",
                reason=Reason.SHAPE,
            )
        heat, geometry = _parts(soft)
        _distributions.check_unit_interval(heat, self.name)
        largest = float(geometry.abs().max())
        if largest > LARGEST_GEOMETRY:
            raise KnowledgeError(
                f"geometry of a box of {largest:.3g}", f"expected at most {LARGEST_GEOMETRY:g}", reason=Reason.RANGE
            )

    def combine(self, opinions: Sequence[NDArray[np.float32]], shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted mean of heat, and of geometry by what each one sees there: who sees no object knows no box."""
        mean = OutputKind.combine(self, opinions, shares)
        boxes, total = np.zeros_like(mean[..., -_BOXES:]), np.zeros((*mean.shape[:-1], 1))
        for opinion, share in zip(opinions, shares, strict=True):
            seen = share * np.clip(opinion[..., :-_BOXES].max(-1, keepdims=True), _LEAST, 1).astype(np.float64)
            boxes += seen * opinion[..., -_BOXES:]
            total += seen
        mean[..., -_BOXES:] = boxes / total
        return mean


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Heat maps (N, …, C) and geometry (N, …, 4)."""
    return values[..., :-_BOXES], values[..., -_BOXES:]
