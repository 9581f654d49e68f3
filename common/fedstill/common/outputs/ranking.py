"""Candidates in the order of their relevance: items for a user, documents for a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.outputs import OutputKind, _distributions


@dataclass(frozen=True, slots=True)
class Ranking(OutputKind):
    """Scores of candidates: a distribution over what comes first."""

    name: ClassVar[str] = "ranking"

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Softmax of z / T: the chance of each candidate to come first (Cao et al. 2007, ListNet, definition 4)."""
        return torch.softmax(logits / temperature, dim=-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Listwise cross-entropy −Σ_c t_c ln softmax(z)_c, mean over the samples that have a relevant candidate.

        Cao et al. 2007 (https://dl.acm.org/doi/10.1145/1273496.1273513); Liang et al. 2018, eq. 2
        (https://arxiv.org/abs/1802.05814).

        Args:
            logits: (N, M) scores.
            targets: (N, M) relevance >= 0, brought to a sum of 1; −1 takes a candidate out of the list.
        """
        out = targets < 0
        relevance = targets.clamp_min(0).to(logits.dtype)
        total = relevance.sum(-1)
        log_first = torch.log_softmax(logits.masked_fill(out, -1e9), dim=-1)
        lost = -(relevance * log_first).sum(-1) / total.clamp_min(1e-12)
        return lost.sum() / (total > 0).sum().clamp_min(1)

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T² · KL(q ‖ softmax(z / T))."""
        return _distributions.per_sample(_distributions.kl(logits, soft, temperature))

    def entropy(self, soft: Tensor) -> Tensor:
        """−Σ_c q_c ln q_c."""
        return _distributions.per_sample(_distributions.entropy(soft))

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Softmax of q / T, with q first brought to a maximum of 1.

        Over many candidates q is small everywhere, and softmax(q / T) would be even.
        """
        return torch.softmax(soft / soft.amax(-1, keepdim=True).clamp_min(1e-12) / temperature, dim=-1)

    def power(self, soft: Tensor, exponent: float) -> Tensor:
        """q_c ∝ p_c^β."""
        return _distributions.power(soft, exponent)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen candidates brought to a sum of 1, and the mass that they had."""
        return _distributions.restrict(soft, columns)

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1 that sum to 1."""
        _distributions.check_distributions(soft, self.name)

    def normalise(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """A sum of 1."""
        return _distributions.normalise(mean)
