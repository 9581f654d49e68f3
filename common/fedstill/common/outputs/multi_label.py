"""Any number of classes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedstill.common.outputs import OutputKind, _distributions


@dataclass(frozen=True, slots=True)
class MultiLabel(OutputKind):
    """Any number of classes at once: one probability for each."""

    name: ClassVar[str] = "multi-label"

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Sigmoid of z / T."""
        return torch.sigmoid(logits / temperature)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, mean over samples and classes."""
        return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T² · Σ_c KL(Bernoulli(q_c) ‖ Bernoulli(sigmoid(z_c / T)))."""
        cross = binary_cross_entropy_with_logits(logits / temperature, soft, reduction="none")
        own = torch.xlogy(soft, soft) + torch.xlogy(1 - soft, 1 - soft)
        return temperature**2 * _distributions.per_sample((cross + own).sum(-1))

    def entropy(self, soft: Tensor) -> Tensor:
        """Sum of the classes' binary entropies."""
        return _distributions.per_sample(-(torch.xlogy(soft, soft) + torch.xlogy(1 - soft, 1 - soft)).sum(-1))

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Sigmoid of (2q − 1) / T."""
        # The two-class case of Categorical.sharpen: softmax([p, 1 - p] / T)[0].
        return torch.sigmoid((2 * soft - 1) / temperature)

    def power(self, soft: Tensor, exponent: float) -> Tensor:
        """p^β / (p^β + (1 − p)^β): the two-class case."""
        return _distributions.power(torch.stack([soft, 1 - soft], -1), exponent)[..., 0]

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen classes; they do not depend on the others."""
        return soft[..., columns], soft.new_ones(len(soft))

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1."""
        _distributions.check_unit_interval(soft, self.name)
