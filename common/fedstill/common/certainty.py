"""How much a public sample is like a client's own data: a logistic regression that tells the two apart, made private.

Sattler et al. 2021 (FedAUX, https://arxiv.org/abs/2102.02514), with the output perturbation of Chaudhuri et al. 2011
(https://arxiv.org/abs/0912.0071). With feature vectors h of length 1, t = 1 for n₁ private rows and −1 for n₀ public
ones, n = n₁ + n₀:

    w*     = argmin (1/n) Σ ln(1 + exp(−t ⟨w, h⟩)) + (λ/2) ‖w‖²
    Δ      = 2 / (λ n), the farthest that w* moves when one private row is another
    w      = w* + N(0, σ² I), σ such that w is (ε, δ)-private
    score  = 1 / (1 + exp(−⟨w, h⟩))

σ is that of the analytic Gaussian mechanism (Balle & Wang 2018, https://arxiv.org/abs/1805.06530, theorem 8), which
holds for every ε > 0; σ = Δ √(2 ln(1.25/δ)) / ε, as the paper has it, holds for ε < 1 only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from fedstill.common.errors import KnowledgeError, Reason

_PRECISION = 1e-9
"""Largest gradient at the end: w is then within this over λ of w*, far below the noise."""
_STEPS = 100


def private_scorer(
    own: Tensor, public: Tensor, *, ridge: float, epsilon: float, delta: float, chance: torch.Generator
) -> Tensor:
    """The regression's weights, with noise: (D,) float64.

    Args:
        own: (n₁, D) features of private examples.
        public: (n₀, D) of public samples.
        ridge: λ.
        epsilon, delta: of the privacy of one private example against another in its place.
        chance: of the noise; who knows its seed can take it away.

    Raises:
        KnowledgeError: if a feature is not finite.
    """
    rows = unit_rows(torch.cat([own, public]))
    signs = torch.cat([torch.ones(len(own)), -torch.ones(len(public))]).double()
    exact = logistic_regression(rows, signs, ridge=ridge)
    scale = gaussian_scale(2 / (ridge * len(rows)), epsilon=epsilon, delta=delta)
    return exact + scale * torch.randn(exact.shape, generator=chance, dtype=torch.float64)


def scores(scorer: Tensor, features: Tensor) -> Tensor:
    """Score of each sample, (N,) float32 from 0 to 1.

    Args:
        scorer: (D,) weights.
        features: (N, D).
    """
    return torch.sigmoid(unit_rows(features) @ scorer).float()


def unit_rows(features: Tensor) -> Tensor:
    """Rows of length 1, (N, D) float64; a row of zeros stays.

    Raises:
        KnowledgeError: if a feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise KnowledgeError("a non-finite feature", "expected finite numbers", reason=Reason.NOT_FINITE)
    return normalize(features.double(), dim=-1)


def logistic_regression(rows: Tensor, signs: Tensor, *, ridge: float) -> Tensor:
    """The minimum of (1/n) Σ ln(1 + exp(−t ⟨w, h⟩)) + (λ/2) ‖w‖², by Newton steps that are halved until they help.

    Args:
        rows: (n, D) float64 feature vectors h.
        signs: (n,) float64, t = 1 or −1.
        ridge: λ > 0.
    """

    def objective(weights: Tensor) -> float:
        return float(ridge / 2 * weights @ weights - logsigmoid(signs * (rows @ weights)).mean())

    found = rows.new_zeros(rows.shape[1])
    for _ in range(_STEPS):
        wrong = torch.sigmoid(-signs * (rows @ found))
        gradient = ridge * found - rows.T @ (signs * wrong) / len(rows)
        if float(gradient.norm()) < _PRECISION:
            break
        curvature = (rows * (wrong * (1 - wrong) / len(rows)).unsqueeze(1)).T @ rows
        step = torch.linalg.solve(curvature + ridge * torch.eye(len(found), dtype=rows.dtype), gradient)
        size, before = 1.0, objective(found)
        while size > _PRECISION and objective(found - size * step) > before:
            size /= 2
        found = found - size * step
    return found


def gaussian_scale(sensitivity: float, *, epsilon: float, delta: float) -> float:
    """Standard deviation of the noise that makes a value (ε, δ)-private: the analytic Gaussian mechanism.

    Args:
        sensitivity: how far the value moves at most (Euclidean) when one example changes.
        epsilon, delta: the privacy.
    """
    low, high = 1e-3, 1.0
    while _lost(high, epsilon) > delta:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _lost(middle, epsilon) > delta else (low, middle)
    return high * sensitivity


def _lost(scale: float, epsilon: float) -> float:
    """The δ of noise of that scale at sensitivity 1 (Balle & Wang 2018, equation 6)."""
    half, moved = 1 / (2 * scale), epsilon * scale
    return _normal(half - moved) - math.exp(epsilon) * _normal(-half - moved)


def _normal(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2
