"""Samples that were not asked yet, then those that were asked longest ago: the proxy set in turn, in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedstill.common.outputs import OUTPUTS
from fedstill.common.query import HISTORY, Ids, Pool, least_recent


@dataclass(frozen=True, slots=True)
class Novelty:
    """The least recently asked samples: all have their turn before one is asked again."""

    name: ClassVar[str] = "novelty"
    paper: ClassVar[str] = ""
    outputs: ClassVar[frozenset[str]] = frozenset(OUTPUTS.names())
    needs: ClassVar[frozenset[str]] = frozenset({HISTORY})

    def choose(self, pool: Pool, count: int, chance: np.random.Generator) -> Ids:
        """By age."""
        return least_recent(pool, chance)[:count]
