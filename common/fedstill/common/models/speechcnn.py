"""Convolutions over log-mel spectrograms of any length: frames behind a recording's end change nothing.

After Sainath and Parada 2015, https://www.isca-archive.org/interspeech_2015/sainath15b_interspeech.html (small
convolutional networks for spoken words), with three layers, each channel normalised over what is heard of a recording
(Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022), and the mean and the maximum over time.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from fedstill.common.network import Network, exporting
from fedstill.common.task import TaskSpec

_LAYERS = {"small": ((12, 24, 32), 48), "medium": ((24, 48, 64), 96), "large": ((48, 96, 256), 768)}
"""Channels of the convolutions, units for each frame."""

_EPSILON = 1e-5
_DROPOUT = 0.3


class SpeechCNN:
    """Three convolutions over spectrograms, mean and maximum over time; padding changes nothing."""

    name: ClassVar[str] = "speechcnn"
    paper: ClassVar[str] = (
        "Sainath and Parada 2015, https://www.isca-archive.org/interspeech_2015/sainath15b_interspeech.html"
    )
    modalities: ClassVar[frozenset[str]] = frozenset({"speech"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "3 × 3 convolutions of 12, 24 and 32 channels, 48 units for each frame",
            "medium": "3 × 3 convolutions of 24, 48 and 64 channels, 96 units for each frame",
            "large": "3 × 3 convolutions of 48, 96 and 256 channels, 768 units for each frame",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; spectrograms (1, mels, frames) of any size will do."""
        channels, units = _LAYERS[size]
        body = _Body(spec.input_shape[-2], channels, units)
        return Network(body, nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(2 * units, len(spec.classes))))


class _Body(nn.Module):
    """Spectrograms (N, 1, mels, frames) to one vector each: (N, 2 · units).

    A frame of nothing but 0 is padding; in a standardised spectrogram no other is. Behind the last frame every layer
    sees zeros, as it does beyond the edge, so that the answer does not depend on how long a batch is.
    """

    def __init__(self, mels: int, channels: tuple[int, ...], units: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in zip((1, *channels), channels, strict=False)
        )
        self.norms = nn.ModuleList(_HeardNorm(width) for width in channels)
        bands = -(-mels // 2 ** len(channels))
        self.frames = nn.Conv1d(channels[-1] * bands, units, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        heard = (inputs != 0).any(2, keepdim=True)  # (N, 1, 1, frames)
        longest = inputs.shape[3] if exporting() else _longest(heard)
        states, mask = inputs[..., :longest], heard[..., :longest].to(inputs.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # Outputs of relu are 0 at least: a maximum with a frame of padding is the other frame's.
            states = max_pool2d(relu(norm(convolution(states), mask)) * mask, 2, ceil_mode=True)
            mask = max_pool2d(mask, (1, 2), ceil_mode=True)
        there = mask.flatten(1, 2)  # (N, 1, frames)
        units = relu(self.frames(states.flatten(1, 2))) * there
        return torch.cat([units.sum(2) / there.sum(2).clamp_min(1), units.amax(2)], 1)


def _longest(heard: Tensor) -> int:
    """Frames of the longest recording of a batch, of a (N, 1, 1, frames) mask; 1 at least."""
    return int((heard.any(0).flatten().nonzero()[-1:] + 1).sum()) or 1


class _HeardNorm(nn.Module):
    """Each channel of each sample with mean 0 and deviation 1 over the frames that are heard, then scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        count = (mask.sum(3, keepdim=True) * states.shape[2]).clamp_min(1)
        centred = states - (states * mask).sum((2, 3), keepdim=True) / count
        variance = (centred.square() * mask).sum((2, 3), keepdim=True) / count
        normal: Tensor = centred * torch.rsqrt(variance + _EPSILON) * self.scale + self.shift
        return normal
