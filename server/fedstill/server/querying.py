"""Which proxy samples a round is about, and what the server keeps of earlier rounds to choose them by.

A query strategy chooses (`fedstill.common.query`); this is its memory, which a run's state and its checkpoints hold as
tensors. Only what the strategy needs is kept: nothing for one that draws at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.cache import LabelCache, updated
from fedstill.common.ensemble import disagreement, mean_soft_labels
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import AboutSamples, Knowledge, SoftLabels
from fedstill.common.messages import Answer
from fedstill.common.query import CONSENSUS, DISAGREEMENT, Pool, QueryStrategy
from fedstill.common.registry import QUERIES
from fedstill.server.holdings import ServerTask

_TIMES, _LAST, _APART, _LABELS = "times", "last", "disagreement", "labels."


def chosen(own: ServerTask, kept: Mapping[str, Tensor], *, seed: int) -> NDArray[np.int64]:
    """The ids of a round's samples, sorted.

    Args:
        own: the task.
        kept: what `after` gave after the round before.
        seed: of the round and the proxy set.

    Raises:
        ConfigError: if the strategy gives anything but so many different samples.
    """

    def choose(count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        ids = _strategy(own).choose(pool_of(kept, len(own.proxy)), count, chance)
        if len(ids) != count or len(np.unique(ids)) != count or ids.min() < 0 or ids.max() >= len(own.proxy):
            raise ConfigError(
                f"{len(ids)} samples, {len(np.unique(ids))} of them different, chosen by query strategy '{own.choose}'",
                f"expected {count} different ones from 0 to {len(own.proxy) - 1}",
                "mend the strategy",
            )
        return ids

    return own.proxy.draw(own.per_round, seed=seed, choose=choose)


def pool_of(kept: Mapping[str, Tensor], size: int) -> Pool:
    """What is kept, as a strategy sees it.

    Args:
        kept: what `after` gave.
        size: number of proxy samples.
    """
    cache = _labels(kept)
    return Pool(
        times=kept[_TIMES].numpy() if _TIMES in kept else np.zeros(size, dtype=np.int64),
        last=kept[_LAST].numpy() if _LAST in kept else np.zeros(size, dtype=np.int64),
        consensus=cache.labels if cache is not None else None,
        disagreement=kept[_APART].numpy() if _APART in kept else np.full(size, np.nan),
    )


def after(
    own: ServerTask,
    kept: Mapping[str, Tensor],
    answers: Sequence[Answer],
    consensus: Knowledge | None,
    *,
    step: int,
) -> Mapping[str, Tensor]:
    """What is kept after a step.

    Args:
        own: the task.
        kept: what was kept before it.
        answers: those that were admitted.
        consensus: what the method made of them.
        step: number of the step.
    """
    needs = _strategy(own).needs
    about = own.spec.name
    parts = [answer.tasks[about].knowledge for answer in answers if about in answer.tasks]
    opinions = [part for part in parts if isinstance(part, AboutSamples)]
    if not needs or not opinions:
        return kept
    pool, asked = pool_of(kept, len(own.proxy)), np.unique(np.concatenate([part.samples for part in opinions]))
    times, last, apart = pool.times.copy(), pool.last.copy(), pool.disagreement.copy()
    times[asked] += 1
    last[asked] = step
    new = {_TIMES: torch.from_numpy(times), _LAST: torch.from_numpy(last)}
    soft = [part for part in opinions if isinstance(part, SoftLabels)]
    if DISAGREEMENT in needs and soft:
        apart[asked] = disagreement(soft, space=own.spec.classes)
        new[_APART] = torch.from_numpy(apart)
    if CONSENSUS in needs and soft:
        # A method that tells each client something of its own may have no consensus.
        label = consensus if isinstance(consensus, SoftLabels) else mean_soft_labels(soft, space=own.spec.classes)
        cache = updated(_labels(kept), label, step, space=own.spec.classes)
        new |= {_LABELS + key: value for key, value in cache.tensors().items()}
    return new


def _labels(kept: Mapping[str, Tensor]) -> LabelCache | None:
    return LabelCache.from_tensors(
        {key.removeprefix(_LABELS): value for key, value in kept.items() if key.startswith(_LABELS)}
    )


def _strategy(own: ServerTask) -> QueryStrategy:
    return cast(QueryStrategy, QUERIES.get(own.choose)())
