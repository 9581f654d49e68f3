"""Small transformer encoders, trained from scratch.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, with layer normalisation before each sublayer (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745), which trains without warm-up. Positions are sinusoids: weights know no length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from fedstill.common.models._heads import TEXT_OUTPUTS, text_head
from fedstill.common.network import Network, exporting, mean_state
from fedstill.common.task import TaskSpec

_LAYERS = {"small": (1, 64, 4), "large": (3, 128, 4)}
"""Layers, width, attention heads."""

_DROPOUT = 0.1
_BLOCKED = -1e4
"""Added to the score of padding: finite, so that a text of nothing but padding has no NaN, and within bf16's range."""


class Transformer:
    """Attention between the words of a text, with sinusoidal positions."""

    name: ClassVar[str] = "transformer"
    paper: ClassVar[str] = "Vaswani et al. 2017, https://arxiv.org/abs/1706.03762"
    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    outputs: ClassVar[frozenset[str]] = TEXT_OUTPUTS
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "one encoder layer 64 wide, four heads",
            "large": "three encoder layers 128 wide, four heads",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; texts of any length will do."""
        layers, width, heads = _LAYERS[size]
        return Network(
            _Encoder(spec.vocabulary, layers, width, heads), text_head(spec, width, pool=mean_state, dropout=_DROPOUT)
        )


class _Encoder(nn.Module):
    """Token ids (…, L) to states (…, L, D), zero at padding."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.dropout = nn.Dropout(_DROPOUT)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[-1]
        flat = tokens.flatten(0, -2)
        # Columns that are padding in the whole batch would cost as much as words do.
        used = length if exporting() else _used(flat)
        flat = flat[:, :used]
        words = (flat != 0).unsqueeze(-1)
        states = self.embedding(flat)
        blocked = ((flat == 0).to(states.dtype) * _BLOCKED)[:, None, None, :]
        states = self.dropout(states + sinusoids(used, states.shape[-1]).to(states.dtype))
        for layer in self.layers:
            states = layer(states, blocked)
        states = pad(self.norm(states) * words, (0, 0, 0, length - used))
        return states.reshape(*tokens.shape, -1)


def _used(tokens: Tensor) -> int:
    """Columns up to the last one of (N, L) that is not padding in the whole batch; 1 at least."""
    filled = (tokens != 0).any(0).nonzero()
    return int(filled[-1]) + 1 if len(filled) else 1


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_network = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, states: Tensor, blocked: Tensor) -> Tensor:
        states = states + self.dropout(self._attention(self.before_attention(states), blocked))
        changed: Tensor = states + self.dropout(self.network(self.before_network(states)))
        return changed

    def _attention(self, states: Tensor, blocked: Tensor) -> Tensor:
        split = self.queries_keys_values(states).unflatten(-1, (3, self.heads, -1))  # (N, L, 3, heads, D / heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=blocked)
        attended: Tensor = self.attended(mixed.transpose(1, 2).flatten(2))
        return attended


def sinusoids(length: int, width: int) -> Tensor:
    """Positions as numbers of even `width`, float32 (length, width): Vaswani et al., section 3.5."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
