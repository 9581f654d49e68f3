"""Which proxy samples are worth their bytes this round: a query strategy chooses them. One file each in `queries/`.

Pool-based active learning (Settles 2009, https://burrsettles.com/pub/settles.activelearning.pdf, sections 2.3 and 3),
with the proxy set as the pool and the clients as the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import ABOUT_SAMPLES, SoftLabels
from fedstill.common.outputs import output_kind
from fedstill.common.registry import QUERIES

HISTORY, CONSENSUS, DISAGREEMENT = "history", "consensus", "disagreement"
"""What a strategy may need to know of the pool."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What the server knows of a task's P proxy samples before a round. A sample without an answer was not asked.

    Attributes:
        times: (P,) int64, in how many rounds each was asked.
        last: (P,) int64, the last of these rounds; 0 for none.
        consensus: of the samples that have one, the newest; None before there is any.
        disagreement: (P,) float64, how far the clients' answers lay apart when each was asked last, in nats; NaN for
            one that was not asked. See `ensemble.disagreement`.
    """

    times: Ids
    last: Ids
    consensus: SoftLabels | None
    disagreement: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times)

    def entropies(self) -> NDArray[np.float64]:
        """Entropy of each sample's consensus, (P,) in nats; NaN where there is none."""
        found = np.full(len(self), np.nan)
        if self.consensus is not None:
            kind, values = output_kind(self.consensus.output), torch.from_numpy(self.consensus.values).double()
            soft = values if self.consensus.form == "probabilities" else kind.soften(values, 1.0)
            found[self.consensus.samples] = kind.entropy(soft).numpy()
        return found


class QueryStrategy(Protocol):
    """How the samples of a round are chosen.

    Attributes:
        name: by which it is found; the file's name.
        paper: where it comes from; "" if nowhere.
        outputs: the output kinds that it works for.
        needs: what it reads of the pool: "history" (`times` and `last`), "consensus", "disagreement". The server keeps
            nothing else; the two latter need a method that exchanges soft labels.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    outputs: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]]

    def choose(self, pool: Pool, count: int, chance: np.random.Generator) -> Ids:
        """The ids of so many different samples, in any order.

        Args:
            pool: what is known of the samples, whose ids are 0 to len(pool) − 1.
            count: from 1 to len(pool) − 1.
            chance: seeded by run, round and proxy set.
        """


def least_recent(pool: Pool, chance: np.random.Generator) -> Ids:
    """All samples, the least recently asked first; of these the least often asked, then in random order: (P,)."""
    return np.lexsort((chance.permutation(len(pool)), pool.times, pool.last))


def by_score(pool: Pool, scores: NDArray[np.float64], count: int, chance: np.random.Generator) -> Ids:
    """Half the samples by score, half by age.

    The ⌊count / 2⌋ of the highest scores, equal ones in random order; then the least recently asked of the others. So
    every sample has its turn within ⌈P / ⌈count / 2⌉⌉ rounds, however low its score.

    Args:
        pool: what is known of the samples.
        scores: (P,); NaN for a sample that has none.
        count: how many are chosen.
        chance: for what is equal.
    """
    known = np.flatnonzero(~np.isnan(scores))
    order = np.lexsort((chance.permutation(len(known)), -scores[known]))
    best = known[order][: count // 2]
    others = least_recent(pool, chance)
    others = others[~np.isin(others, best)]
    return np.concatenate([best, others[: count - len(best)]])


def check_choice(task: str, choose: str, *, output: str, exchange: str) -> None:
    """Refuse a strategy that has no meaning for a task's output kind or for what a method exchanges.

    A method that asks clients nothing goes with every strategy.

    Raises:
        ConfigError: naming what would do.
    """
    strategy: type[QueryStrategy] = QUERIES.get(choose)
    if output not in strategy.outputs:
        raise ConfigError(
            f"tasks.{task}.proxy.choose='{choose}' with output kind '{output}'",
            f"expected one of {', '.join(sorted(strategy.outputs))}",
            "choose 'random' or 'novelty', which work for every kind",
        )
    wanted = {SoftLabels.kind} if strategy.needs - {HISTORY} else ABOUT_SAMPLES
    if strategy.needs and exchange not in {*wanted, "nothing", "data"}:
        raise ConfigError(
            f"tasks.{task}.proxy.choose='{choose}' with a method that exchanges {exchange}",
            f"expected one that exchanges {' or '.join(sorted(wanted))}",
            "choose 'random', or another algorithm",
        )
