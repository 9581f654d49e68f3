"""How much denser one's own data is than a uniform density: an estimate of the ratio in closed form (KuLSIF).

Kanamori et al. 2012, https://doi.org/10.1007/s10994-011-5266-3, kernel unconstrained least-squares importance fitting.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 500
"""Samples on each side: the estimate solves a system of so many equations."""


def density_ratio(own: Tensor, reference: Tensor, points: Tensor, *, width: float, weight: float) -> Tensor:
    """p(z) / q(z) at each point, with a Gaussian kernel k.

        ŵ(z) = Σ_i α_i k(z, x_i) + 1/(m λ) Σ_j k(z, y_j),   α = −(K/n + λ I)⁻¹ (1/(n m λ)) [Σ_j k(x_i, y_j)]_i

    Args:
        own: (m, D) samples y of p.
        reference: (n, D) samples x of q.
        points: (N, D).
        width: of the kernel, its standard deviation.
        weight: λ > 0 of the regularisation.

    Returns:
        (N,) float64; least squares may give numbers a little below 0.
    """
    n, m = len(reference), len(own)
    among = _kernel(reference, reference, width)
    across = _kernel(reference, own, width).sum(1)
    alpha: Tensor = -torch.linalg.solve(among / n + weight * torch.eye(n, dtype=among.dtype), across) / (n * m * weight)
    ratio: Tensor = _kernel(points, reference, width) @ alpha + _kernel(points, own, width).mean(1) / weight
    return ratio


def _kernel(one: Tensor, other: Tensor, width: float) -> Tensor:
    return torch.exp(-(torch.cdist(one.double(), other.double()) ** 2) / (2 * width**2))
