"""One class of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedstill.common.outputs import OutputKind, _distributions


@dataclass(frozen=True, slots=True)
class Categorical(OutputKind):
    """One class of several: a distribution that sums to 1."""

    name: ClassVar[str] = "categorical"
    has_classes: ClassVar[bool] = True

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Softmax of z / T."""
        return torch.softmax(logits / temperature, dim=-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over samples and positions."""
        return cross_entropy(logits.flatten(0, -2), targets.flatten())

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T² · KL(q ‖ softmax(z / T))."""
        return _distributions.per_sample(_distributions.kl(logits, soft, temperature))

    def entropy(self, soft: Tensor) -> Tensor:
        """−Σ_c q_c ln q_c."""
        return _distributions.per_sample(_distributions.entropy(soft))

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Softmax of q / T."""
        return torch.softmax(soft / temperature, dim=-1)

    def harden(self, soft: Tensor, temperature: float) -> Tensor:
        """q_ic ∝ b_c · p_ic^(1/T), so that each class's sum over samples stays what it was."""
        return _distributions.harden(soft, temperature)

    def power(self, soft: Tensor, exponent: float) -> Tensor:
        """q_c ∝ p_c^β."""
        return _distributions.power(soft, exponent)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen classes brought to a sum of 1, and the mass that they had."""
        chosen = soft[..., columns]
        mass = chosen.sum(-1, keepdim=True)
        return chosen / mass.clamp_min(1e-12), _distributions.per_sample(mass.squeeze(-1))

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1 that sum to 1."""
        _distributions.check_distributions(soft, self.name)

    def normalise(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """A sum of 1; even where nobody says anything."""
        total: NDArray[np.float64] = mean.sum(-1, keepdims=True)
        return np.divide(mean, total, out=np.full_like(mean, 1 / mean.shape[-1]), where=total > 0)
