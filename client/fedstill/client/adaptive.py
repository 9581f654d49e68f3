"""A client that listens as far as listening does it good.

The client keeps a part of its own examples aside. On them it compares its student with what the student would be
alone after the same number of steps; a teacher that makes it worse gets less weight, and one that makes it better gets
it back. In the end the client keeps whichever is better, the student or the one that was trained alone.

The weight w acts on whatever the method does: θ ← θ + w (θ′ − θ), where θ′ is the student after it has taken in the
shared knowledge (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, interpolate so between two fine-tunings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedstill.client.holdings import Holding
from fedstill.common.labels import Classes
from fedstill.common.learning import Training, predict
from fedstill.common.metrics import class_accuracy

_PREFIX = "adaptive."
_CURVE, _WEIGHT, _ALONE = "curve", "weight", "alone."


Score = tuple[float, float]
"""Main measure and negative loss: the larger the better, in this order."""


@dataclass(frozen=True, slots=True, eq=False)
class Adaptive:
    """What a client remembers for one task from round to round.

    Attributes:
        curve: (R, 2) held-out score of the student trained alone after each round's steps.
        alone: its weights in the end.
        weight: of the shared knowledge in the next round, 0 to 1.
    """

    curve: Tensor
    alone: Mapping[str, Tensor]
    weight: float = 1.0

    def heard(self, round_number: int, score: Score) -> Adaptive:
        """After a round: half the weight for a student that is worse than alone, up to twice for one that is not."""
        worse = list(score) < self.curve[min(round_number, len(self.curve)) - 1].tolist()
        return Adaptive(self.curve, self.alone, self.weight / 2 if worse else min(1.0, 2 * self.weight))

    def tensors(self) -> dict[str, Tensor]:
        """For the store."""
        return {
            _PREFIX + _CURVE: self.curve,
            _PREFIX + _WEIGHT: torch.tensor(self.weight),
            **{_PREFIX + _ALONE + name: value for name, value in self.alone.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Adaptive | None:
        """The inverse of `tensors`; None if there are none."""
        if _PREFIX + _CURVE not in tensors:
            return None
        start = _PREFIX + _ALONE
        alone = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        return cls(tensors[_PREFIX + _CURVE], alone, float(tensors[_PREFIX + _WEIGHT]))


def blend(model: nn.Module, before: Mapping[str, Tensor], weight: float) -> None:
    """Move a model's weights back towards what they were: θ ← θ₀ + w (θ − θ₀); w = 1 leaves them."""
    if weight == 1:
        return
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(before[name].lerp(value, weight))


def held_out_score(holding: Holding, model: nn.Module, classes: Classes, training: Training) -> Score:
    """The task's main measure on the client's own held-out examples; NaN if there are none.

    Among equals the one with the lower loss is better: a few examples tell little apart.

    Where an example has one class, the classes that occur count equally: the client is to know them all, and those it
    has few examples of are what it can learn from others.
    """
    examples = holding.data.holdout
    if not len(examples):
        return float("nan"), float("nan")
    logits = predict(model, examples.inputs, training=training)
    loss = float(holding.spec.kind.loss(logits, examples.targets))
    if holding.spec.output == "categorical" and examples.targets.dim() == 1:
        rates = torch.tensor(class_accuracy(logits, examples.targets, len(classes)))
        return float(rates[~rates.isnan()].mean()), -loss
    return next(iter(holding.task.measure(logits, examples.targets, classes).values())), -loss
