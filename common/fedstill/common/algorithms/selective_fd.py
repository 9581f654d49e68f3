"""Selective-FD: a client answers on proxy samples that look like its own data, and the server drops ambiguous answers.

Shao et al. 2024, Nature Communications 15:349, https://arxiv.org/abs/2304.01731:

    client selector   x is answered if ŵ_k(x) >= the quantile q of ŵ_k over examples of its own,
                      ŵ_k the ratio of the client's density to a uniform one, by KuLSIF: see `density`
    merge             p̄(x) = mean of p_k(x) over the clients that answered x
    server selector   x is told if ‖p̄(x) − onehot(argmax p̄(x))‖₁ = 2 (1 − max_c p̄_c(x)) <= τ
    absorb            student ← p̄ on the samples that were told

As in the authors' program the ratio is one of inputs as vectors, with λ = n^(−1/2), and uniform samples in the range of
the inputs.

Deviations: (1) Inputs that are no numbers but ids (texts) are replaced by the model's features. (2) The kernel's width
is the median distance between own examples, times `width`: the authors choose a number for each data set. (3) At most
500 own examples are used, one half for the estimate and the other for the quantile. (4) A client that would answer
nothing answers on the sample that looks most like its own, a consensus that would be empty keeps its clearest sample,
and a client with fewer than four examples answers on all. (5) Answers are soft labels; the paper has hard ones too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import check
from fedstill.common.cache import take
from fedstill.common.density import LARGEST, density_ratio
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.learning import predict
from fedstill.common.network import FeatureReader, feature_network
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Client, Server, soft_labels_of

_FEWEST = 4


@dataclass(frozen=True, slots=True)
class SelectiveFD:
    """Clients answer on proxy samples that look like their own data; ambiguous answers are dropped.

    Attributes:
        quantile: q, the part of a client's own examples that its selector would refuse.
        ambiguity: τ, the largest distance of a consensus from a hard label that is told; 2 tells all.
        width: of the kernel, in median distances between own examples.
        distil_epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "selective-fd"
    paper: ClassVar[str] = "Shao et al. 2024, https://arxiv.org/abs/2304.01731"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    quantile: float = 0.25
    ambiguity: float = 1.0
    width: float = 1.0
    distil_epochs: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise ConfigError(f"algorithm.quantile={self.quantile}", "expected 0 <= value < 1")
        check.positive("2 tells every sample", algorithm_ambiguity=self.ambiguity)
        check.positive(algorithm_width=self.width)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from what was clear enough."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples that look like it."""
        client.train()
        answers = client.soft_labels()
        return take(answers, _chosen(client, self.quantile, self.width))

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """The mean of those that answered a sample, where it is clear."""
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
        distance = 2 * (1 - mean.values.max(-1))
        clear = np.flatnonzero(distance <= max(self.ambiguity, float(distance.min())))
        return take(mean, clear)


def _chosen(client: Client, quantile: float, width: float) -> NDArray[np.int64]:
    """Rows of the round's samples that a client's selector lets through."""
    inputs = client.proxy.at(client.samples)
    if len(client.private) < _FEWEST:
        return np.arange(len(inputs))
    draw = torch_rng(client.seed, "selector")
    rows = torch.randperm(len(client.private), generator=draw)[:LARGEST]
    both = _vectors(client, torch.cat([client.private.inputs[rows], inputs]))
    mine, points = both[: len(rows)], both[len(rows) :]
    known, held_out = mine[::2], mine[1::2]
    low, high = both.amin(0), both.amax(0)
    uniform = low + (high - low) * torch.rand(known.shape, generator=draw, dtype=torch.float64)
    spread = float(torch.pdist(known).median()) or 1.0
    options = {"width": width * spread, "weight": 1 / math.sqrt(len(uniform))}
    limit = density_ratio(known, uniform, held_out, **options).quantile(quantile)
    ratios = density_ratio(known, uniform, points, **options)
    return torch.nonzero(ratios >= torch.minimum(limit, ratios.max())).flatten().numpy()


def _vectors(client: Client, inputs: Tensor) -> Tensor:
    """Inputs as vectors, float64 (N, D)."""
    if not inputs.is_floating_point():
        reader = FeatureReader(feature_network(client.model, client.model_name))
        inputs = predict(reader, inputs, training=client.training)
    return inputs.flatten(1).double()
