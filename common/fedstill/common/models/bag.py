"""Bags of words: the mean of a text's word embeddings, and a small network on it.

Iyyer et al. 2015 (deep averaging network), https://aclanthology.org/P15-1162.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from fedstill.common.models._heads import TEXT_OUTPUTS, text_head
from fedstill.common.network import Network, mean_state
from fedstill.common.task import TaskSpec

_WIDTHS = {"small": (32, 64), "large": (128, 256)}
"""Numbers of an embedding, hidden units."""


class Bag:
    """The mean of word embeddings and a fully connected network: word order does not count."""

    name: ClassVar[str] = "bag"
    paper: ClassVar[str] = "Iyyer et al. 2015, https://aclanthology.org/P15-1162"
    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    outputs: ClassVar[frozenset[str]] = TEXT_OUTPUTS
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "embeddings of 32 numbers, one hidden layer of 64 units",
            "large": "embeddings of 128 numbers, one hidden layer of 256 units",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; texts of any length will do."""
        embedding, hidden = _WIDTHS[size]
        body = nn.Embedding(spec.vocabulary, embedding, padding_idx=0)
        return Network(body, text_head(spec, embedding, pool=mean_state, hidden=hidden, context=True))
