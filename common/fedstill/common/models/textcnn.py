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
from torch.nn.functional import pad, relu

from fedstill.common.models._heads import TEXT_OUTPUTS, max_state, text_head
from fedstill.common.network import Network
from fedstill.common.task import TaskSpec

_SPANS = (3, 4, 5)
_WIDTHS = {"small": (32, 32), "large": (128, 100)}
"""Numbers of an embedding, filters of each span."""


class TextCNN:
    """Convolutions over three, four and five words with max-pooling over time."""

    name: ClassVar[str] = "textcnn"
    paper: ClassVar[str] = "Kim 2014, https://arxiv.org/abs/1408.5882"
    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    outputs: ClassVar[frozenset[str]] = TEXT_OUTPUTS
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "embeddings of 32 numbers, 32 filters of each span",
            "large": "embeddings of 128 numbers, 100 filters of each span",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; texts of any length will do."""
        width, filters = _WIDTHS[size]
        body = _Convolutions(spec.vocabulary, width, filters)
        return Network(body, text_head(spec, filters * len(_SPANS), pool=max_state, dropout=0.5, context=True))


class _Convolutions(nn.Module):
    """Tokens (N, …, L) to states (N, …, L, filters of all spans); zeros at padding."""

    def __init__(self, vocabulary: int, width: int, filters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, span) for span in _SPANS)

    def forward(self, tokens: Tensor) -> Tensor:
        flat = tokens.flatten(0, -2)
        words = self.embedding(flat).transpose(1, 2)  # (N, embedding, L)
        # Padded so that there is a state for each word, and a text shorter than a filter is read too.
        spans = [pad(words, ((span - 1) // 2, span // 2)) for span in _SPANS]
        states = [relu(convolution(span)) for convolution, span in zip(self.convolutions, spans, strict=True)]
        filled = torch.cat(states, 1).transpose(1, 2) * (flat != 0).unsqueeze(-1)
        return filled.reshape(*tokens.shape, -1)
