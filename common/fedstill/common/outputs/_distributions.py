"""What the kinds share whose soft labels are distributions over classes: pure functions of (N, …, C) tensors.

A row of zeros is no label: it adds nothing to a divergence or an entropy.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.errors import KnowledgeError, Reason

TOLERANCE = 1e-3
"""How far a distribution's sum may be from 1: fp16 rounding stays below it (2⁻¹¹ of the sum, 2⁻²⁵ for each class)."""

_LEAST = 1e-9
"""What stands for a probability of 0 where a logarithm is taken."""
_ROUNDS, _HALVINGS, _CLOSE = 100, 30, 1e-5
"""Of hardening: at most so many steps and shorter tries of one, or until all class shares together are so close."""


def per_sample(values: Tensor) -> Tensor:
    """Mean over positions of a (N, …) tensor: (N,)."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def per_labelled(values: Tensor, soft: Tensor) -> Tensor:
    """Mean of (N, …) values over the positions whose soft labels (N, …, C) are not blank: (N,), 0 without any."""
    if values.dim() == 1:
        return values
    there = (soft.sum(-1) > 0).to(values.dtype)
    return (values * there).flatten(1).sum(1) / there.flatten(1).sum(1).clamp_min(1)


def kl(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """T² · KL(q ‖ softmax(z / T)) at each position: (N, …)."""
    log_student = torch.log_softmax(logits / temperature, dim=-1)
    # xlogy(0, 0) = 0: a class that the teacher rules out adds nothing.
    return temperature**2 * (torch.xlogy(soft, soft) - soft * log_student).sum(-1)


def entropy(soft: Tensor) -> Tensor:
    """−Σ_c q_c ln q_c at each position: (N, …)."""
    return -torch.xlogy(soft, soft).sum(-1)


def sharpen(soft: Tensor, temperature: float) -> Tensor:
    """Softmax of q / T; blank rows stay blank."""
    return torch.softmax(soft / temperature, dim=-1) * (soft.sum(-1, keepdim=True) > 0)


def harden(soft: Tensor, temperature: float) -> Tensor:
    """Distributions q_ic ∝ b_c · p_ic^(1/T) in which each class keeps its share: Σ_i q_ic = Σ_i p_ic; blank rows stay.

    Plain sharpening (b_c = 1) favours classes that are frequent anyway: nobody is as sure of a rare one. The ln b_c
    minimise Σ_i ln Σ_c b_c p_ic^(1/T) − Σ_ic p_ic ln b_c, which is convex: by Newton steps where they do better than
    scaling rows and columns in turn (Sinkhorn & Knopp 1967, https://doi.org/10.2140/pjm.1967.21.343), else by that.
    """
    labelled = soft.sum(-1) > 0
    rows = soft[labelled].double()
    result = torch.zeros_like(soft)
    if len(rows):
        shares = rows.mean(0)
        scores = rows.clamp_min(_LEAST).log() / temperature
        result[labelled] = torch.softmax(scores + _biases(scores, shares), dim=-1).to(soft.dtype)
    return result


def _biases(scores: Tensor, shares: Tensor) -> Tensor:
    """The (C,) numbers that bring mean_i softmax(scores_i + biases) to the shares, as nearly as _ROUNDS steps do."""

    def distance(biases: Tensor) -> Tensor:
        return torch.logsumexp(scores + biases, dim=-1).mean() - shares @ biases

    biases = torch.zeros_like(shares)
    for _ in range(_ROUNDS):
        hard = torch.softmax(scores + biases, dim=-1)
        found = hard.mean(0)
        gap = shares - found
        if gap.abs().sum() < _CLOSE:
            break
        scaled = biases + (shares.clamp_min(_LEAST) / found.clamp_min(_LEAST)).log()
        # All biases moved alike change nothing, so the Hessian is singular but for the small numbers on its diagonal.
        hessian = torch.diag(found * (1 + 1e-9) + 1e-15) - hard.T @ hard / len(hard)
        newton = torch.linalg.solve(hessian, gap)
        steps = (biases + newton / 2**halvings for halvings in range(_HALVINGS))
        bound = distance(scaled)
        biases = next((step for step in steps if distance(step) < bound), scaled)
    return biases


def power(soft: Tensor, exponent: float) -> Tensor:
    """Distributions ∝ p^β; blank rows stay blank."""
    # Scaled to a maximum of 1 first, so that no row underflows to zeros.
    raised = (soft.double() / soft.amax(-1, keepdim=True).double().clamp_min(1e-300)) ** exponent
    return (raised / raised.sum(-1, keepdim=True).clamp_min(1e-300)).to(soft.dtype)


def restrict(soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen classes brought to a sum of 1, and the mass that they had, mean over labelled positions (N,)."""
    chosen = soft[..., columns]
    mass = chosen.sum(-1, keepdim=True)
    return chosen / mass.clamp_min(1e-12), per_labelled(mass.squeeze(-1), soft)


def normalise(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows brought to a sum of 1; blank rows stay blank."""
    total: NDArray[np.float64] = mean.sum(-1, keepdims=True)
    return np.divide(mean, total, out=np.zeros_like(mean), where=total > 0)


def check_unit_interval(soft: Tensor, kind: str) -> None:
    """Raise KnowledgeError unless all numbers are from 0 to 1."""
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


def check_distributions(soft: Tensor, kind: str, *, blank: bool = False) -> None:
    """Raise KnowledgeError unless every row sums to 1 (or, where that may be, is blank)."""
    check_unit_interval(soft, kind)
    total = soft.sum(-1)
    off = (total - 1).abs()
    if blank:
        off = torch.where(total == 0, 0.0, off)
    worst = off.max().item() if soft.numel() else 0.0
    if worst > TOLERANCE:
        raise KnowledgeError(
            f"{kind} soft labels that miss a sum of 1 by {worst:.3g}", "expected sums of 1", reason=Reason.RANGE
        )
