"""Samples drawn anew each round, whatever is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedstill.common.outputs import OUTPUTS
from fedstill.common.query import Ids, Pool


@dataclass(frozen=True, slots=True)
class Random:
    """Samples drawn anew each round, all equally likely."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = ""
    outputs: ClassVar[frozenset[str]] = frozenset(OUTPUTS.names())
    needs: ClassVar[frozenset[str]] = frozenset()

    def choose(self, pool: Pool, count: int, chance: np.random.Generator) -> Ids:
        """A sample without replacement."""
        return chance.choice(len(pool), count, replace=False)
