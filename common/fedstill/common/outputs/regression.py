"""Real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fedstill.common.errors import KnowledgeError, Reason, UnsupportedError
from fedstill.common.outputs import OutputKind, _distributions

LARGEST_VALUE = 1e6
"""A regression output above this is no prediction but an attack or a diverged model; its square overflows soon."""


@dataclass(frozen=True, slots=True)
class Regression(OutputKind):
    """Real numbers: the soft label is the prediction itself, and the temperature has no meaning."""

    name: ClassVar[str] = "regression"

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """The outputs themselves."""
        return logits

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return mse_loss(logits, targets.to(logits.dtype).reshape(logits.shape))

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """½ Σ_c (z_c − q_c)²."""
        return _distributions.per_sample(0.5 * (logits - soft).square().sum(-1))

    def entropy(self, soft: Tensor) -> Tensor:
        """Refuse: there are no probabilities."""
        raise UnsupportedError("entropy of regression outputs", "expected outputs that are probabilities")

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Refuse: there are no probabilities."""
        raise UnsupportedError("sharpening of regression outputs", "expected outputs that are probabilities")

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen values; they do not depend on the others."""
        return soft[..., columns], soft.new_ones(len(soft))

    def check(self, soft: Tensor) -> None:
        """Finite numbers of a sensible size."""
        if not torch.isfinite(soft).all():
            raise KnowledgeError("non-finite regression outputs", "expected finite numbers", reason=Reason.NOT_FINITE)
        if soft.numel() and soft.abs().max() > LARGEST_VALUE:
            raise KnowledgeError(
                f"a regression output of {soft.abs().max():.3g}",
                f"expected at most {LARGEST_VALUE:g}",
                "standardise the targets",
                reason=Reason.RANGE,
            )
