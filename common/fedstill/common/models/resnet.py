"""Residual networks for small images: 6n + 2 layers in three stages of 16, 32 and 64 channels.

He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2, with shortcuts without weights (option A). Deviation:
GroupNorm (Wu & He 2018, https://arxiv.org/abs/1803.08494) in place of BatchNorm. BatchNorm's running means and
variances are statistics of a client's private inputs: averaged over clients they fit nobody's data, batches of proxy
samples shift them, and with the weights they would leave the client (Hsieh et al. 2020,
https://arxiv.org/abs/1910.00189, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from fedstill.common.network import Network
from fedstill.common.task import TaskSpec

_GROUPS = 8
_WIDTHS = (16, 32, 64)
_BLOCKS = {"8": 1, "20": 3}
"""Residual blocks of a stage, two convolutions each."""


class ResNet:
    """Residual networks for small images, with GroupNorm in place of BatchNorm."""

    name: ClassVar[str] = "resnet"
    paper: ClassVar[str] = "He et al. 2016, https://arxiv.org/abs/1512.03385"
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"8": "8 layers, one block in each of three stages", "20": "20 layers, three blocks in each of three stages"}
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; images of any size will do."""
        blocks: list[nn.Module] = []
        width = _WIDTHS[0]
        for stage in _WIDTHS:
            for _ in range(_BLOCKS[size]):
                blocks.append(_Block(width, stage))
                width = stage
        body = nn.Sequential(
            nn.Conv2d(spec.input_shape[0], _WIDTHS[0], 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, _WIDTHS[0]),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return Network(body, nn.Linear(width, len(spec.classes)))


class _Block(nn.Module):
    """Two convolutions with a shortcut; a block that widens halves height and width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.wider = width - channels
        self.stride = 2 if self.wider else 1
        self.conv1 = nn.Conv2d(channels, width, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, width)

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs
        if self.wider:
            shortcut = pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.wider))
        hidden = relu(self.norm1(self.conv1(inputs)))
        return relu(self.norm2(self.conv2(hidden)) + shortcut)
