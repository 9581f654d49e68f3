"""Plain convolutional networks: two convolutions with max-pooling, two fully connected layers.

McMahan et al. 2017, https://arxiv.org/abs/1602.05629: `large` is the CNN of their MNIST experiments (1,663,370 weights
on 28 × 28 × 1); the smaller ones have the same layers with 3 × 3 kernels and fewer channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from fedstill.common.errors import UnsupportedError
from fedstill.common.network import Network
from fedstill.common.task import TaskSpec

_LAYERS = {"small": (3, 16, 32, 48), "medium": (3, 32, 64, 176), "large": (5, 32, 64, 512)}
"""Kernel, channels of the two convolutions, hidden units."""


class CNN:
    """Two convolutions with max-pooling and two fully connected layers."""

    name: ClassVar[str] = "cnn"
    paper: ClassVar[str] = "McMahan et al. 2017, https://arxiv.org/abs/1602.05629"
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "3 × 3 convolutions of 16 and 32 channels, 48 hidden units",
            "medium": "3 × 3 convolutions of 32 and 64 channels, 176 hidden units",
            "large": "5 × 5 convolutions of 32 and 64 channels, 512 hidden units, as in FedAvg's paper",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; images have to be 4 × 4 at least, for they are halved twice."""
        channels, height, width = spec.input_shape
        if min(height, width) < 4:
            raise UnsupportedError(
                f"model 'cnn-{size}' for images of {height} × {width}", "expected at least 4 × 4", "choose 'mlp-small'"
            )
        kernel, first, second, hidden = _LAYERS[size]
        body = nn.Sequential(
            nn.Conv2d(channels, first, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
        )
        return Network(body, nn.Linear(hidden, len(spec.classes)))
