"""Training of several models at once that share a part: one step takes a batch of each task.

The weight of each task is 1, or learnt from what the task does (Kendall, Gal & Cipolla 2018,
https://arxiv.org/abs/1705.07115, section 3.2): with the log-variance s_t of task t's noise,

    loss = Σ_t exp(−s_t) · L_t + ½ s_t
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fedstill.common.learning import Loss, Regulariser, Training, arranged, computing
from fedstill.common.seeding import torch_rng, torch_seeded

LARGEST_LOG_VARIANCE = 4.0
"""A learnt weight stays between exp(−4) and exp(4): the loss of a task that is fitted exactly has no variance."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One task of a joint training.

    Attributes:
        model: float32 weights; some of them may be another part's too.
        inputs: (N, …).
        targets: tensors of length N, given to `loss` batch by batch.
        loss: of (logits, *targets).
        seed: of the order of samples.
        log_variance: s_t.
        regulariser: a loss of its own on each batch, or None.
    """

    model: nn.Module
    inputs: Tensor
    targets: tuple[Tensor, ...]
    loss: Loss
    seed: int
    log_variance: float = 0.0
    regulariser: Regulariser | None = None


def fit_jointly(parts: Sequence[Part], *, training: Training, epochs: int, seed: int, uncertainty: bool) -> list[float]:
    """Train models in place with one fresh optimiser.

    Args:
        parts: at least one.
        training: batch size, optimiser, precision.
        epochs: passes over each part's samples.
        seed: of dropout.
        uncertainty: learn the tasks' weights.

    Returns:
        The parts' log-variances afterwards.
    """
    joint = _Joint(parts)
    parts = [replace(part, inputs=arranged(part.inputs, training)) for part in parts]
    orders = [torch_rng(part.seed, "order") for part in parts]
    with computing(joint, training) as (_, step), torch_seeded(seed, "dropout"):
        joint.train()
        for _ in range(epochs):
            batches = [
                torch.split(torch.randperm(len(part.inputs), generator=order), training.batch_size)
                for part, order in zip(parts, orders, strict=True)
            ]
            for turn in range(max(map(len, batches))):
                losses = {
                    number: joint.loss(number, part, rows[turn])
                    for number, (part, rows) in enumerate(zip(parts, batches, strict=True))
                    if turn < len(rows)
                }
                step(joint.weighted(losses, uncertainty=uncertainty))
    return [float(value) for value in joint.bounded().detach()]


class _Joint(nn.Module):
    """All models as one, so that one optimiser sees what they share once."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.models = nn.ModuleList(part.model for part in parts)
        self.log_variances = nn.Parameter(torch.tensor([part.log_variance for part in parts]))

    def forward(self, number: int, inputs: Tensor) -> Tensor:
        ready = inputs.to(self.log_variances.dtype) if inputs.is_floating_point() else inputs
        outputs: Tensor = self.models[number](ready)
        return outputs.float()

    def loss(self, number: int, part: Part, rows: Tensor) -> Tensor:
        inputs = part.inputs[rows]
        value = part.loss(self(number, inputs), *(target[rows] for target in part.targets))
        if part.regulariser is not None:
            value = value + part.regulariser(partial(self, number), inputs)
        return value

    def bounded(self) -> Tensor:
        return self.log_variances.float().clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)

    def weighted(self, losses: dict[int, Tensor], *, uncertainty: bool) -> Tensor:
        if not uncertainty:
            return torch.stack(list(losses.values())).sum()
        chosen = self.bounded()[list(losses)]
        return (torch.exp(-chosen) * torch.stack(list(losses.values())) + chosen / 2).sum()
