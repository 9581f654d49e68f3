"""Output kinds: what a model's raw outputs mean, so that an algorithm is written once for all tasks. One file each.

A kind turns raw outputs ("logits") into soft labels and knows their loss, divergence, entropy and sharpening. Arrays
have shape (N, …, C): N samples, any number of positions, C classes (or values) last. A row of zeros among soft labels
says "no label here" (padding of a text, say): it teaches nothing and stays zero in a mean.

| kind | soft label | divergence from teacher q to student z, temperature T |
|---|---|---|
| categorical | softmax(z / T) | T² · KL(q ‖ softmax(z / T)), summed over classes, mean over samples |
| token-level | softmax(z / T) at each position | the same, mean over the positions that have a label |
| sequence | softmax(z / T) at each step | the same, along the teacher's own sequence |
| ranking | softmax(z / T) over candidates | T² · KL(q ‖ softmax(z / T)) |
| multi-label | sigmoid(z / T) for each class | T² · Σ_c KL(Bernoulli(q_c) ‖ Bernoulli(sigmoid(z_c / T))) |
| dense | sigmoid(z / T) on heat maps, z on box geometry | Bernoulli KL on heat maps, distance on geometry |
| regression | z itself | ½ Σ_c (z_c − q_c)² |
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.errors import UnsupportedError
from fedstill.common.registry import Registry

OUTPUTS = Registry("output kind", "fedstill.common.outputs", "fedstill.outputs")

IGNORE = -100
"""The target of a position without a label."""


class OutputKind(Protocol):
    """What a model's raw outputs mean. All tensors are (N, …, C); a per-sample result is (N,).

    A kind inherits from this protocol and so gets what most kinds share.

    Attributes:
        name: by which it is found; the file's name.
        has_positions: an answer is more than one row of classes: `TaskData.positions` says how many.
        has_classes: soft labels are distributions over the task's classes, one row or one for each position.
        selects: opinions have no mean: `combine` chooses one for each sample.
    """

    name: ClassVar[str]
    has_positions: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    selects: ClassVar[bool] = False

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

    def harden(self, soft: Tensor, temperature: float) -> Tensor:
        """Harder soft labels in which every class keeps its share; as they are where a kind has no classes to share."""
        return soft

    def power(self, soft: Tensor, exponent: float) -> Tensor:
        """Soft labels ∝ p^exponent: harder above 1, more even below.

        Raises:
            UnsupportedError: for a kind whose soft labels are no distributions over classes.
        """
        raise UnsupportedError(f"powers of {self.name} outputs", "expected distributions over classes")

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Soft labels over some of the classes, and each sample's weight (N,): the mass that those classes had."""

    def check(self, soft: Tensor) -> None:
        """Raise KnowledgeError if the values cannot be soft labels of this kind."""

    def forced(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Inputs with which a model is trained towards labels (targets or soft labels); most kinds need no others."""
        return inputs

    def blank(self, soft: Tensor, inputs: Tensor) -> Tensor:
        """Soft labels with zeros where the inputs have no position (padding)."""
        return soft

    def normalise(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """A mean of soft labels, over classes that not everybody knows, as soft labels again."""
        return mean

    def combine(self, opinions: Sequence[NDArray[np.float32]], shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """One soft label of several: here their weighted mean, accumulated in float64.

        Args:
            opinions: (N, …, C) each; zeros where somebody has none.
            shares: (K,) weights >= 0, not all 0.
        """
        total = np.zeros(opinions[0].shape)
        for opinion, share in zip(opinions, shares, strict=True):
            total += share * opinion.astype(np.float64)
        mean: NDArray[np.float64] = total / shares.sum()
        return mean


@cache
def output_kind(name: str) -> OutputKind:
    """The output kind of that name.

    Raises:
        ConfigError: if there is none.
    """
    kind: OutputKind = OUTPUTS.get(name)()
    return kind
