"""Distillation losses: pure functions of raw student outputs, tested with numbers computed by hand.

All reduce to the mean over samples ("batchmean"), not over samples × classes: torch's `KLDivLoss()` default divides by
both, and the gradient is then C times too small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedstill.common.outputs import OutputKind


def weighted_mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of per-sample losses (N,), or Σ wᵢ lᵢ / N: a sample of weight 0 pulls nothing."""
    return (losses if weights is None else losses * weights).mean()


def soft_label_loss(
    logits: Tensor, soft: Tensor, *, kind: OutputKind, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Distillation from soft labels: T² · KL(teacher ‖ student at T), mean over samples.

    Hinton, Vinyals & Dean 2015 (https://arxiv.org/abs/1503.02531), section 2: the factor T² keeps the gradients' size
    the same whatever the temperature.

    Args:
        logits: (N, …, C) raw outputs of the student.
        soft: (N, …, C) the teacher's soft labels, taken at the same temperature.
        kind: what the outputs mean.
        temperature: T > 0.
        weights: (N,) weight of each sample, or None for 1.
    """
    return weighted_mean(kind.divergence(logits, soft, temperature), weights)


def score_loss(logits: Tensor, scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute difference of raw outputs: how FedMD's own code digests the consensus.

    Li & Wang 2019 (https://arxiv.org/abs/1910.03581); mean over samples and classes, as their Keras loss has it.

    Args:
        logits: (N, …, C) raw outputs of the student.
        scores: (N, …, C) consensus scores.
        weights: (N,) weight of each sample, or None for 1.
    """
    return weighted_mean(torch.abs(logits - scores).flatten(1).mean(1), weights)
