"""Small synthetic data for each kind of output, so that everything that is discovered can be driven by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedstill.common.data.proxy import ProxySet
from fedstill.common.labels import Classes
from fedstill.common.learning import Training
from fedstill.common.outputs import IGNORE
from fedstill.common.seeding import torch_rng
from fedstill.common.task import Examples, TaskSpec

CLASSES: dict[str, Classes] = {
    "categorical": ("a", "b", "c"),
    "multi-label": ("p", "q"),
    "regression": ("y",),
    "ranking": ("first", "second", "third"),
    "token-level": ("O", "B", "I"),
}

MODELS = {"token-level": "bag-small"}
"""Of the kinds that a fully connected network cannot answer."""

VOCABULARY = 12


@dataclass(frozen=True)
class Synthetic:
    """Data of one output kind: a rule of four numbers, or of the words of a text.

    Attributes:
        output: the kind.
    """

    output: str

    @property
    def model(self) -> str:
        return MODELS.get(self.output, "mlp-small")

    @property
    def spec(self) -> TaskSpec:
        if self.output == "token-level":
            return TaskSpec(
                "synthetic", self.output, "text", CLASSES[self.output], (6,), vocabulary=VOCABULARY, positions=(6,)
            )
        return TaskSpec("synthetic", self.output, "tabular", CLASSES[self.output], (4,))

    @property
    def proxy(self) -> ProxySet:
        return ProxySet(self._inputs(24, "proxy"))

    @property
    def training(self) -> Training:
        return Training(epochs=1, batch_size=8, learning_rate=0.05)

    def examples(self, count: int, owner: str) -> Examples:
        inputs = self._inputs(count, owner)
        return Examples(inputs, self.targets(inputs))

    def targets(self, inputs: Tensor) -> Tensor:
        if self.output == "categorical":
            return inputs[:, :3].argmax(-1)
        if self.output == "multi-label":
            return (inputs[:, :2] > 0).float()
        if self.output == "ranking":
            return one_hot(inputs[:, :3].argmax(-1), 3).float()
        if self.output == "token-level":
            return (inputs % 3).masked_fill(inputs == 0, IGNORE)
        return inputs[:, :1] * 2 - inputs[:, 1:2]

    def logits(self, inputs: Tensor) -> Tensor:
        """Raw outputs of somebody who knows more or less."""
        if self.output == "token-level":
            return one_hot(inputs % 3, 3) * 3.0
        return inputs[:, : len(self.spec.classes)] * 3

    def _inputs(self, count: int, owner: str) -> Tensor:
        rng = torch_rng(0, "inputs", owner)
        if self.output == "token-level":
            words = torch.randint(1, VOCABULARY, (count, 6), generator=rng)
            return words * (torch.arange(6) < torch.randint(2, 7, (count, 1), generator=rng))
        return torch.randn(count, 4, generator=rng)


@pytest.fixture(scope="session")
def synthetic() -> type[Synthetic]:
    return Synthetic
