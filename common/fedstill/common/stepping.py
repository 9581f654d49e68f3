"""Optimisers by torch's own functions: `torch.optim.Adam` and `SGD` with fused=True, to the bit.

The classes of `torch.optim` load torch's compiler when they are first used, only to keep it off: 800 modules, a
second and 66 MB (`python benchmarks/edge.py`). A client in deployment is a new process for each message, and would pay
for them in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

_watchers: dict[object, Callable[[], None]] = {}


class Optimizer(Protocol):
    """What the training loop needs of an optimiser."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> None:
        """Change the weights that have a gradient."""


def watch_steps(told: Callable[[], None]) -> Callable[[], None]:
    """Call a function after each step of these optimisers in this process; what is given back ends that."""
    key = object()
    _watchers[key] = told

    def end() -> None:
        _watchers.pop(key, None)

    return end


class _Stepping:
    def __init__(self, weights: Sequence[Tensor], *, learning_rate: float, weight_decay: float) -> None:
        self.weights = list(weights)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights that have a gradient."""
        places = [place for place, weight in enumerate(self.weights) if weight.grad is not None]
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        self._change(places, [self.weights[place] for place in places], gradients)
        for told in _watchers.values():
            told()

    def _change(self, places: list[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError


class Adam(_Stepping):
    """Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, with the usual β₁ = 0.9, β₂ = 0.999 and ε = 1e-8.

    Args:
        weights: to be changed.
        learning_rate: α.
        weight_decay: L2 penalty.
    """

    def __init__(self, weights: Sequence[Tensor], *, learning_rate: float, weight_decay: float) -> None:
        super().__init__(weights, learning_rate=learning_rate, weight_decay=weight_decay)
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _change(self, places: list[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        for place, weight in zip(places, weights, strict=True):
            if place not in self._kept:
                mean, square = (torch.zeros_like(weight, memory_format=torch.preserve_format) for _ in range(2))
                self._kept[place] = mean, square, torch.zeros((), dtype=torch.float32)
        kept = [self._kept[place] for place in places]
        adam(
            weights,
            gradients,
            [mean for mean, _, _ in kept],
            [square for _, square, _ in kept],
            [],
            [count for _, _, count in kept],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )


class SGD(_Stepping):
    """Stochastic gradient descent with momentum 0.9.

    Args:
        weights: to be changed.
        learning_rate: of each step.
        weight_decay: L2 penalty.
    """

    def __init__(self, weights: Sequence[Tensor], *, learning_rate: float, weight_decay: float) -> None:
        super().__init__(weights, learning_rate=learning_rate, weight_decay=weight_decay)
        self._kept: dict[int, Tensor | None] = {}

    def _change(self, places: list[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        momenta = [self._kept.get(place) for place in places]
        sgd(
            weights,
            gradients,
            momenta,
            fused=True,
            weight_decay=self.weight_decay,
            momentum=0.9,
            lr=self.learning_rate,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        self._kept.update(zip(places, momenta, strict=True))
