"""Softmax regression: one linear layer, for inputs of every kind; the smallest student there is."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from fedstill.common.errors import UnsupportedError
from fedstill.common.network import Network, exporting
from fedstill.common.task import TaskSpec


class Linear:
    """One linear layer: of the inputs, or of how often a text holds each word."""

    name: ClassVar[str] = "linear"
    paper: ClassVar[str] = ""
    modalities: ClassVar[frozenset[str]] = frozenset({"image", "tabular", "text"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType({"softmax": "one weight for each input and class"})

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; inputs of any shape will do, of texts one for each sample."""
        if spec.modality == "text" and len(spec.input_shape) > 1:
            raise UnsupportedError(
                f"model 'linear-{size}' for {spec.input_shape[0]} texts at once",
                "expected one text for each sample: counts of words compare nothing",
                "choose 'bag-small'",
            )
        if spec.modality == "text":
            return Network(nn.Identity(), _WordCounts(spec.vocabulary, len(spec.classes)))
        return Network(nn.Flatten(), nn.Linear(prod(spec.input_shape), len(spec.classes)))


class _WordCounts(nn.Module):
    """A linear layer of word counts, without writing out (N, vocabulary) numbers."""

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.EmbeddingBag(vocabulary, classes, mode="sum", padding_idx=0)
        # Torch's N(0, 1) is meant for embeddings; a linear layer that begins so would be sure of random classes.
        nn.init.zeros_(self.weights.weight)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, tokens: Tensor) -> Tensor:
        if exporting():  # a graph knows no such layer, and would go through the samples one by one
            words = embedding(tokens, self.weights.weight) * (tokens != 0).unsqueeze(-1)
            return words.sum(-2) + self.bias
        logits: Tensor = self.weights(tokens) + self.bias
        return logits
