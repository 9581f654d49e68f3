"""Output kinds: what a model's raw outputs mean, so that an algorithm is written once for all tasks.

A kind turns raw outputs ("logits") into soft labels and knows their loss, divergence, entropy and sharpening. Arrays
have shape (N, …, C): N samples, any number of positions, C classes (or values) last.

| kind | soft label | divergence from teacher q to student z, temperature T |
|---|---|---|
| categorical | softmax(z / T) | T² · KL(q ‖ softmax(z / T)), summed over classes, mean over samples |
| multi-label | sigmoid(z / T) for each class | T² · Σ_c KL(Bernoulli(q_c) ‖ Bernoulli(sigmoid(z_c / T))) |
| regression | z itself | ½ Σ_c (z_c − q_c)² |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from fedstill.common.errors import ConfigError, KnowledgeError, Reason, UnsupportedError, nearest

_TOLERANCE = 1e-3
"""How far a distribution's sum may be from 1: fp16 rounding stays below it (2⁻¹¹ of the sum, 2⁻²⁵ for each class)."""

LARGEST_VALUE = 1e6
"""A regression output above this is no prediction but an attack or a diverged model; its square overflows soon."""


class OutputKind(Protocol):
    """What a model's raw outputs mean. All tensors are (N, …, C); a per-sample result is (N,)."""

    name: ClassVar[str]

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Soft labels of raw outputs."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss against true targets (a scalar)."""

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """Distillation loss of each sample against the teacher's soft labels: (N,)."""

    def entropy(self, soft: Tensor) -> Tensor:
        """Uncertainty of each sample's soft label, in nats: (N,)."""

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Entropy reduction (DS-FL's ERA): the smaller the temperature, the harder the soft labels."""

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Soft labels over some of the classes, and each sample's weight (N,): the mass that those classes had."""

    def check(self, soft: Tensor) -> None:
        """Raise KnowledgeError if the values cannot be soft labels of this kind."""


def _per_sample(values: Tensor) -> Tensor:
    """Mean over positions of a (N, …) tensor: (N,)."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


@dataclass(frozen=True, slots=True)
class Categorical:
    """One class of several: a distribution that sums to 1."""

    name: ClassVar[str] = "categorical"

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Softmax of z / T."""
        return torch.softmax(logits / temperature, dim=-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over samples and positions."""
        return cross_entropy(logits.flatten(0, -2), targets.flatten())

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T² · KL(q ‖ softmax(z / T))."""
        log_student = torch.log_softmax(logits / temperature, dim=-1)
        # xlogy(0, 0) = 0: a class that the teacher rules out adds nothing.
        pointwise = torch.xlogy(soft, soft) - soft * log_student
        return temperature**2 * _per_sample(pointwise.sum(-1))

    def entropy(self, soft: Tensor) -> Tensor:
        """−Σ_c q_c ln q_c."""
        return _per_sample(-torch.xlogy(soft, soft).sum(-1))

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Softmax of q / T."""
        return torch.softmax(soft / temperature, dim=-1)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen classes brought to a sum of 1, and the mass that they had."""
        chosen = soft[..., columns]
        mass = chosen.sum(-1, keepdim=True)
        return chosen / mass.clamp_min(1e-12), _per_sample(mass.squeeze(-1))

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1 that sum to 1."""
        _in_unit_interval(soft, self.name)
        worst = (soft.sum(-1) - 1).abs().max().item() if soft.numel() else 0.0
        if worst > _TOLERANCE:
            raise KnowledgeError(
                f"categorical soft labels that miss a sum of 1 by {worst:.3g}",
                "expected sums of 1",
                reason=Reason.RANGE,
            )


@dataclass(frozen=True, slots=True)
class MultiLabel:
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
        return temperature**2 * _per_sample((cross + own).sum(-1))

    def entropy(self, soft: Tensor) -> Tensor:
        """Sum of the classes' binary entropies."""
        return _per_sample(-(torch.xlogy(soft, soft) + torch.xlogy(1 - soft, 1 - soft)).sum(-1))

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Sigmoid of (2q − 1) / T."""
        # The two-class case of Categorical.sharpen: softmax([p, 1 - p] / T)[0].
        return torch.sigmoid((2 * soft - 1) / temperature)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen classes; they do not depend on the others."""
        return soft[..., columns], soft.new_ones(len(soft))

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1."""
        _in_unit_interval(soft, self.name)


@dataclass(frozen=True, slots=True)
class Regression:
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
        return _per_sample(0.5 * (logits - soft).square().sum(-1))

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


def _in_unit_interval(soft: Tensor, kind: str) -> None:
    if not soft.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(soft))  # NaN if one of them is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise KnowledgeError(f"non-finite {kind} soft labels", "expected finite numbers", reason=Reason.NOT_FINITE)
    # Not by a hair outside: the logarithm of −1e-9 is NaN, and one client would spoil every student.
    if low < 0 or high > 1:
        raise KnowledgeError(
            f"{kind} soft labels from {low:.3g} to {high:.3g}",
            "expected probabilities from 0 to 1",
            reason=Reason.RANGE,
        )


KINDS: dict[str, OutputKind] = {kind.name: kind for kind in (Categorical(), MultiLabel(), Regression())}
"""Every output kind by name."""


def output_kind(name: str) -> OutputKind:
    """The output kind of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in KINDS:
        raise ConfigError(f"output kind '{name}'", "expected a known output kind", nearest(name, KINDS))
    return KINDS[name]
