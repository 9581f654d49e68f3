"""Samples whose labels nobody is sure of: uncertainty sampling.

Lewis & Gale 1994 (https://arxiv.org/abs/cmp-lg/9407020), with the entropy of the consensus q as the measure:

    score(x) = −Σ_c q_c(x) ln q_c(x)

Deviation: half of the samples only are chosen so, the other half by age; see `query.by_score`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedstill.common.query import CONSENSUS, HISTORY, Ids, Pool, by_score


@dataclass(frozen=True, slots=True)
class Uncertain:
    """Half of the samples those whose consensus is least certain, half the least recently asked."""

    name: ClassVar[str] = "uncertain"
    paper: ClassVar[str] = "Lewis & Gale 1994, https://arxiv.org/abs/cmp-lg/9407020"
    outputs: ClassVar[frozenset[str]] = frozenset(
        {"categorical", "dense", "multi-label", "ranking", "sequence", "token-level"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({HISTORY, CONSENSUS})

    def choose(self, pool: Pool, count: int, chance: np.random.Generator) -> Ids:
        """By the entropy of the consensus, and by age."""
        return by_score(pool, pool.entropies(), count, chance)
