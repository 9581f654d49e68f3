"""Convolutions over words with max-pooling over time.

Kim 2014, https://arxiv.org/abs/1408.5882, the variant with random embeddings ("CNN-rand"): filters over 3, 4 and 5
words, dropout 0.5 before the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedstill.common.task import TaskSpec

_SPANS = (3, 4, 5)
_WIDTHS = {"small": (32, 32), "large": (128, 100)}
"""Numbers of an embedding, filters of each span."""


class TextCNN:
    """Convolutions over three, four and five words with max-pooling over time."""

    name: ClassVar[str] = "textcnn"
    paper: ClassVar[str] = "Kim 2014, https://arxiv.org/abs/1408.5882"
    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "embeddings of 32 numbers, 32 filters of each span",
            "large": "embeddings of 128 numbers, 100 filters of each span",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> nn.Module:
        """A new model; texts of any length will do."""
        return _TextCNN(spec.vocabulary, *_WIDTHS[size], classes=len(spec.classes))


class _TextCNN(nn.Module):
    def __init__(self, vocabulary: int, width: int, filters: int, *, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        # Padded on both sides, so that a text shorter than a filter is read too.
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, span, padding=span - 1) for span in _SPANS)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(filters * len(_SPANS), classes))

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.embedding(tokens).transpose(1, 2)  # (N, embedding, length)
        peaks = [torch.relu(convolution(words)).amax(2) for convolution in self.convolutions]
        logits: Tensor = self.head(torch.cat(peaks, 1))
        return logits
