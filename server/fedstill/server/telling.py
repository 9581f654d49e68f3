"""Who remembers which labels: rows that a client has been told, and keeps, do not travel to it again.

For a method whose clients keep what they are told (`algorithm.recalls`). The server remembers every sample's last label
and the step that it is from, and of each client the step of the label that it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.cache import LabelCache, joined, take, updated
from fedstill.common.knowledge import Knowledge, SoftLabels
from fedstill.common.messages import NO_SAMPLES

_LABELS, _CLIENT = "labels.", "client."


def remembered(told: Mapping[str, Tensor], client: str, knowledge: Knowledge | None) -> NDArray[np.int64]:
    """The samples of the knowledge whose labels a client holds. At least one is left out: something has to be told."""
    cache, holds = _labels(told), told.get(_CLIENT + client)
    if cache is None or holds is None or not isinstance(knowledge, SoftLabels):
        return NO_SAMPLES
    rounds = cache.rounds_of(knowledge.samples)
    found: NDArray[np.int64] = knowledge.samples[(rounds >= 0) & (holds.numpy()[knowledge.samples] == rounds)]
    return found[1:] if len(found) == len(knowledge.samples) else found


def after(
    told: Mapping[str, Tensor],
    *,
    heard: Knowledge | None,
    clients: Collection[str],
    lost: Collection[str],
    knowledge: Knowledge | None,
    step: int,
    size: int,
) -> dict[str, Tensor]:
    """Who holds what after a step.

    Args:
        told: before it.
        heard: what the clients were told in it.
        clients: whose answers were admitted.
        lost: those of them that had lost their student, and all that they held.
        knowledge: what is told next.
        step: number of the step.
        size: number of proxy samples.
    """
    new = dict(told)
    cache = _labels(told)
    if cache is not None and isinstance(heard, SoftLabels):
        for client in clients:
            before = None if client in lost else told.get(_CLIENT + client)
            holds = torch.full((size,), -1) if before is None else before.clone()
            holds[torch.from_numpy(heard.samples)] = torch.from_numpy(cache.rounds_of(heard.samples))
            new[_CLIENT + client] = holds
    if isinstance(knowledge, SoftLabels):
        changed = knowledge if cache is None else take(knowledge, _changed(cache, knowledge))
        labels = updated(cache, changed, step)
        new |= {_LABELS + key: value for key, value in labels.tensors().items()}
    return new


def _changed(cache: LabelCache, knowledge: SoftLabels) -> NDArray[np.int64]:
    """Rows of the knowledge that are new, or differ from the label that is remembered."""
    rows = cache.places(knowledge.samples)
    known = np.flatnonzero(rows >= 0)
    classes = tuple(dict.fromkeys((*knowledge.classes, *cache.labels.classes)))
    old = joined([take(cache.labels, rows[known])], classes).values
    new = joined([take(knowledge, known)], classes).values
    if old.shape != new.shape:
        return np.arange(len(rows))
    same = (old == new).reshape(len(known), -1).all(axis=1)
    return np.setdiff1d(np.arange(len(rows)), known[same])


def _labels(told: Mapping[str, Tensor]) -> LabelCache | None:
    return LabelCache.from_tensors(
        {key.removeprefix(_LABELS): value for key, value in told.items() if key.startswith(_LABELS)}
    )
