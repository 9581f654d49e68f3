"""Denoising autoencoders, for profiles of ratings or other rows with many zeros.

Liang et al. 2018 (Mult-DAE), https://arxiv.org/abs/1802.05814: rows of length 1, dropout 0.5 on them, tanh.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from fedstill.common.network import Network
from fedstill.common.task import TaskSpec

_HIDDEN = {"small": (64,), "large": (600, 200, 600)}


class Autoencoder:
    """A denoising autoencoder: what a row leaves out, from what it holds."""

    name: ClassVar[str] = "autoencoder"
    paper: ClassVar[str] = "Liang et al. 2018, https://arxiv.org/abs/1802.05814"
    modalities: ClassVar[frozenset[str]] = frozenset({"tabular"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "one hidden layer of 64 units",
            "large": "hidden layers of 600, 200 and 600 units, as in the paper",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; inputs of any shape will do."""
        widths = (prod(spec.input_shape), *_HIDDEN[size])
        hidden = [layer for inner, outer in pairwise(widths) for layer in (nn.Linear(inner, outer), nn.Tanh())]
        return Network(nn.Sequential(nn.Flatten(), _Noisy(), *hidden), nn.Linear(widths[-1], len(spec.classes)))


class _Noisy(nn.Module):
    """Rows brought to length 1, then dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, rows: Tensor) -> Tensor:
        noisy: Tensor = self.dropout(normalize(rows, dim=1))
        return noisy
