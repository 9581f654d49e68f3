"""One class for each token of a text: tags, slots, keywords."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedstill.common.outputs import IGNORE, OutputKind, _distributions


@dataclass(frozen=True, slots=True)
class TokenLevel(OutputKind):
    """One class for each token; padding has none."""

    name: ClassVar[str] = "token-level"
    has_classes: ClassVar[bool] = True
    has_positions: ClassVar[bool] = True

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Softmax of z / T at each position."""
        return torch.softmax(logits / temperature, dim=-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the positions that have a target (IGNORE says that one has none)."""
        total = cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return total / (targets != IGNORE).sum().clamp_min(1)

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T² · KL(q ‖ softmax(z / T)), mean over the positions that have a label."""
        return _distributions.per_labelled(_distributions.kl(logits, soft, temperature), soft)

    def entropy(self, soft: Tensor) -> Tensor:
        """−Σ_c q_c ln q_c, mean over the positions that have a label."""
        return _distributions.per_labelled(_distributions.entropy(soft), soft)

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Softmax of q / T at each position that has a label."""
        return _distributions.sharpen(soft, temperature)

    def harden(self, soft: Tensor, temperature: float) -> Tensor:
        """q_ic ∝ b_c · p_ic^(1/T), so that each class's sum over labelled positions stays what it was."""
        return _distributions.harden(soft, temperature)

    def power(self, soft: Tensor, exponent: float) -> Tensor:
        """q_c ∝ p_c^β."""
        return _distributions.power(soft, exponent)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen classes brought to a sum of 1, and the mass that they had."""
        return _distributions.restrict(soft, columns)

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1 that sum to 1, or are all 0, at each position."""
        _distributions.check_distributions(soft, self.name, blank=True)

    def blank(self, soft: Tensor, inputs: Tensor) -> Tensor:
        """Zeros at padding: where the token id is 0."""
        return soft * (inputs != 0).unsqueeze(-1)

    def normalise(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """A sum of 1 at each position that has a label."""
        return _distributions.normalise(mean)
