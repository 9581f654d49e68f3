"""SCARLET: soft labels are cached for some rounds, so that clients are asked, and told, about expired samples alone.

Azuma et al. 2025, https://arxiv.org/abs/2504.19602. With client k's probabilities p_k(x) on proxy sample x of round t,
and τ(x) the round that x's cached label is from:

    ask      the samples x of P^t without a label, and those with t - τ(x) >= D
    merge    q(x) ∝ (mean_k p_k(x))^β (enhanced ERA, for those), and the cached q(x) of the others
    tell     the labels that a client does not hold yet
    absorb   student ← q on P^t, the new labels and those of its own cache

Deviations: (1) A label that replaces an expired one is cached at once; the authors' program does so the next time
that its sample is drawn. (2) A client that was absent is told what it missed when a round needs it, where the paper
sends a catch-up package with everything that changed. (3) If no label has expired, the oldest are asked for, one in D,
where the paper asks for none: every answer is about something, and where all samples are in each round, as many are
asked for in each. (4) Distillation minimises KL(q ‖ p); the server's own model is the teacher's business. (5) A
lossy codec makes the clients' caches differ from the server's by its loss. (6) A class that nobody knew when a label
was cached has 0 in it until it expires.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common import check
from fedstill.common.cache import LabelCache, updated
from fedstill.common.ensemble import mean_soft_labels, powered
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of

_CACHE = "cache."


@dataclass(frozen=True, slots=True)
class Scarlet:
    """Students learn from cached soft labels; only expired ones are asked for and sent again.

    Attributes:
        exponent: β of the enhanced entropy reduction; above 1 labels get harder, and 1 is the mean.
        duration: D, for how many rounds a label is used; 1 caches nothing.
        distil_epochs: passes over the proxy samples in one round.
    """

    name: ClassVar[str] = "scarlet"
    paper: ClassVar[str] = "Azuma et al. 2025, https://arxiv.org/abs/2504.19602"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical", "multi-label", "token-level", "ranking"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False
    recalls: ClassVar[bool] = True

    exponent: float = 1.5
    duration: int = 3
    distil_epochs: int = 2

    def __post_init__(self) -> None:
        check.positive("the aggregate is mean^exponent, brought to a sum of 1", algorithm_exponent=self.exponent)
        check.at_least(1, algorithm_duration=self.duration)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def due(self, server: Server) -> NDArray[np.int64]:
        """The samples of this round whose label has expired, or is missing; one in D, the oldest, if there are none."""
        cache = _cache(server)
        if cache is None:
            return server.samples
        rounds = cache.rounds_of(server.samples)
        expired = (rounds < 0) | (server.round - rounds >= self.duration)
        if not expired.any():
            expired[np.argsort(rounds, kind="stable")[: math.ceil(len(rounds) / self.duration)]] = True
        return server.samples[expired]

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the labels, new and remembered."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the samples that were asked for."""
        client.train()
        return client.soft_labels()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Enhanced entropy reduction of the mean answer; the cache has the rest."""
        space = server.spec.classes
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=space)
        cache = updated(_cache(server), powered(mean, self.exponent), server.round, space=space)
        server.memory |= {_CACHE + key: value for key, value in cache.tensors().items()}
        return cache.about(server.samples)


def _cache(server: Server) -> LabelCache | None:
    return LabelCache.from_tensors(
        {key.removeprefix(_CACHE): value for key, value in server.memory.items() if key.startswith(_CACHE)}
    )
