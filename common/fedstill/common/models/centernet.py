"""One-stage detector without anchors: a heat map of object centres and a box at each of its cells.

Zhou, Wang & Krähenbühl 2019, "Objects as Points", https://arxiv.org/abs/1904.07850: maps at a quarter of the image's
resolution, of one 3 × 3 convolution and a linear layer at each cell. Deviations: the maps share that convolution; the
backbone is a small network with two coarser levels that are added to the finest (Lin et al. 2017,
https://arxiv.org/abs/1612.03144), with GroupNorm for the reason in `resnet.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedstill.common.data.boxes import STRIDE
from fedstill.common.errors import UnsupportedError
from fedstill.common.network import Network
from fedstill.common.outputs.dense import GEOMETRY
from fedstill.common.task import TaskSpec

_WIDTHS = {"small": 16, "large": 32}
"""Channels at a quarter of the resolution; an eighth and a sixteenth have twice as many."""

_GROUPS = 8
_FIRST_CHANCE = 0.1


class CenterNet:
    """Object centres as peaks of a heat map, with a box at each."""

    name: ClassVar[str] = "centernet"
    paper: ClassVar[str] = "Zhou et al. 2019, https://arxiv.org/abs/1904.07850"
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    outputs: ClassVar[frozenset[str]] = frozenset({"dense"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "maps from 16 channels, 32 at two coarser levels",
            "large": "maps from 32 channels, 64 at two coarser levels",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; it answers at every fourth pixel in each direction."""
        channels, height, width = spec.input_shape
        if spec.positions != (height // STRIDE, width // STRIDE) or height % STRIDE or width % STRIDE:
            raise UnsupportedError(
                f"model 'centernet-{size}' for maps of {spec.positions} on images of {height} × {width}",
                f"expected maps of a {STRIDE}th of the height and width",
            )
        return Network(_Levels(channels, _WIDTHS[size]), _Maps(_WIDTHS[size], len(spec.classes)))


class _Levels(nn.Module):
    """Three levels of ever coarser states, added up at the finest: (N, width, height / 4, width / 4)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(channels, width, stride=2), _layer(width, width, stride=2))
        self.middle = nn.Sequential(_layer(width, 2 * width, stride=2), _layer(2 * width, 2 * width))
        self.coarse = nn.Sequential(_layer(2 * width, 2 * width, stride=2), _layer(2 * width, 2 * width))
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.smooth = _layer(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        fine = self.stem(inputs)
        middle = self.middle(fine)
        middle = middle + interpolate(self.coarse(middle), size=middle.shape[2:])
        states: Tensor = self.smooth(fine + interpolate(self.narrow(middle), size=fine.shape[2:]))
        return states


class _Maps(nn.Module):
    """Heat maps and geometry, channels last: (N, height, width, C + 4)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.maps = nn.Conv2d(2 * width, outputs, 1, bias=False)
        # Nearly every cell is background: with even chances the first steps would learn nothing but that.
        heat = outputs - len(GEOMETRY)
        first = math.log(_FIRST_CHANCE / (1 - _FIRST_CHANCE))
        self.bias = nn.Parameter(torch.tensor([first] * heat + [0.0] * len(GEOMETRY)))

    def forward(self, states: Tensor) -> Tensor:
        maps: Tensor = self.maps(self.hidden(states).relu()).permute(0, 2, 3, 1)
        return maps + self.bias


def _layer(channels: int, width: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU()
    )
