"""Fully connected networks, for images and tables.

McMahan et al. 2017, https://arxiv.org/abs/1602.05629: `medium` is their "2NN" (199,210 weights on 28 × 28 × 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from fedstill.common.network import Network
from fedstill.common.task import TaskSpec

_HIDDEN = {"small": (64,), "medium": (200, 200), "large": (512, 512)}


class MLP:
    """Fully connected layers with ReLU."""

    name: ClassVar[str] = "mlp"
    paper: ClassVar[str] = "McMahan et al. 2017, https://arxiv.org/abs/1602.05629"
    modalities: ClassVar[frozenset[str]] = frozenset({"image", "tabular"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "one hidden layer of 64 units",
            "medium": "two hidden layers of 200 units, as the 2NN of FedAvg's paper",
            "large": "two hidden layers of 512 units",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; inputs of any shape will do."""
        widths = (prod(spec.input_shape), *_HIDDEN[size])
        hidden = [layer for inner, outer in pairwise(widths) for layer in (nn.Linear(inner, outer), nn.ReLU())]
        return Network(nn.Sequential(nn.Flatten(), *hidden), nn.Linear(widths[-1], len(spec.classes)))
