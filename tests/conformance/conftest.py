"""Small synthetic data for each kind of output, so that everything that is discovered can be driven by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedstill.common.data.proxy import ProxySet
from fedstill.common.labels import Classes
from fedstill.common.learning import Training
from fedstill.common.seeding import torch_rng
from fedstill.common.task import Examples, TaskSpec

CLASSES: dict[str, Classes] = {"categorical": ("a", "b", "c"), "multi-label": ("p", "q"), "regression": ("y",)}


@dataclass(frozen=True)
class Synthetic:
    """Data of one output kind: a linear rule of four numbers.

    Attributes:
        output: the kind.
    """

    output: str

    @property
    def spec(self) -> TaskSpec:
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
        return inputs[:, :1] * 2 - inputs[:, 1:2]

    def _inputs(self, count: int, owner: str) -> Tensor:
        return torch.randn(count, 4, generator=torch_rng(0, "inputs", owner))


@pytest.fixture(scope="session")
def synthetic() -> type[Synthetic]:
    return Synthetic
