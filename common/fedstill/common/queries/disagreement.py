"""Samples on which the clients differ: each is sure, and of something else.

Houlsby et al. 2011 (BALD, https://arxiv.org/abs/1112.5745, equation 2), with the clients that answered in place of
draws from a posterior, as in query by committee (Seung et al. 1992, https://doi.org/10.1145/130385.130417):

    score(x) = H(mean_k p_k(x)) − mean_k H(p_k(x)),

the Jensen–Shannon divergence of their last answers. It is 0 where all say the same, however unsure they are.

Deviation: half of the samples only are chosen so, the other half by age; see `query.by_score`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedstill.common.query import DISAGREEMENT, HISTORY, Ids, Pool, by_score


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Half of the samples those on which the clients' answers differ most, half the least recently asked."""

    name: ClassVar[str] = "disagreement"
    paper: ClassVar[str] = "Houlsby et al. 2011, https://arxiv.org/abs/1112.5745"
    # Not sequences: texts of different words have no mean.
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical", "dense", "multi-label", "ranking", "token-level"})
    needs: ClassVar[frozenset[str]] = frozenset({HISTORY, DISAGREEMENT})

    def choose(self, pool: Pool, count: int, chance: np.random.Generator) -> Ids:
        """By how far the last answers lie apart, and by age."""
        return by_score(pool, pool.disagreement, count, chance)
