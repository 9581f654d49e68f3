"""Soft labels that are kept over rounds: a method's cache, and what clients were told, so that no row is sent twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Header, Knowledge, SoftLabels
from fedstill.common.labels import Classes, ordered, positions


@dataclass(frozen=True, slots=True, eq=False)
class LabelCache:
    """Soft labels of proxy samples and how old they are.

    Attributes:
        labels: sorted by sample.
        rounds: (N,) int64, the round that each row is from.
    """

    labels: SoftLabels
    rounds: NDArray[np.int64]

    def places(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of samples, (N,) int64; -1 for one that is not here."""
        own = self.labels.samples
        if not len(own):
            return np.full(len(samples), -1, dtype=np.int64)
        rows = np.searchsorted(own, samples).clip(max=len(own) - 1)
        return np.where(own[rows] == samples, rows, -1)

    def rounds_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rounds that the rows of samples are from; -1 for one that is not here."""
        rows = self.places(samples)
        return np.where(rows >= 0, self.rounds[rows], -1) if len(self.rounds) else rows

    def about(self, samples: NDArray[np.int64]) -> SoftLabels:
        """The labels of those of the samples that are here."""
        rows = self.places(samples)
        return take(self.labels, rows[rows >= 0])

    def tensors(self) -> dict[str, Tensor]:
        """For a memory or a store: the inverse of `from_tensors`."""
        header = json.dumps(self.labels.header()).encode()
        return {
            "header": torch.from_numpy(np.frombuffer(header, dtype=np.uint8).copy()),
            "samples": torch.from_numpy(self.labels.samples),
            "values": torch.from_numpy(self.labels.values),
            "rounds": torch.from_numpy(self.rounds),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LabelCache | None:
        """The inverse of `tensors`; None of nothing."""
        if not tensors:
            return None
        header: Header = json.loads(tensors["header"].numpy().tobytes())
        arrays = {"samples": tensors["samples"].numpy(), "values": tensors["values"].numpy()}
        return cls(SoftLabels.from_parts(header, arrays), tensors["rounds"].numpy())


def updated(cache: LabelCache | None, labels: SoftLabels, number: int, *, space: Classes = ()) -> LabelCache:
    """A cache with labels put in, in place of older ones of the same samples.

    Args:
        cache: the cache so far. One of another output kind, form or temperature is dropped.
        labels: of any samples; their classes are added to the cache's, where they are 0 for all other rows.
        number: the round that the labels are from.
        space: the label space, whose order is the result's; without it, classes that are new come last.
    """
    if cache is None or not alike(cache.labels, labels):
        rows = np.argsort(labels.samples)
        return LabelCache(take(labels, rows), np.full(len(rows), number, dtype=np.int64))
    union = dict.fromkeys((*cache.labels.classes, *labels.classes))
    classes = ordered(union, space or tuple(union))
    kept = np.flatnonzero(~np.isin(cache.labels.samples, labels.samples))
    merged = joined([take(cache.labels, kept), labels], classes)
    rounds = np.concatenate([cache.rounds[kept], np.full(len(labels.samples), number, dtype=np.int64)])
    order = np.argsort(merged.samples)
    return LabelCache(take(merged, order), rounds[order])


def completed(fresh: Knowledge | None, cache: LabelCache | None, recalled: NDArray[np.int64]) -> SoftLabels:
    """Labels that came, and those of the samples `recalled` from a cache, sorted by sample.

    Raises:
        KnowledgeError: with Reason.CONTEXT if the cache lacks some of them, and all have to be told again.
    """
    if not isinstance(fresh, SoftLabels):
        raise KnowledgeError("labels to be remembered without any that are new", "expected soft labels")
    if np.isin(recalled, fresh.samples).any():
        raise KnowledgeError("labels that came, and are to be remembered", "expected one of both")
    known = cache.about(recalled) if cache is not None and alike(cache.labels, fresh) else None
    if known is None or len(known.samples) != len(recalled):
        raise KnowledgeError(
            f"{len(recalled)} labels to be remembered", "expected to have been told them", reason=Reason.CONTEXT
        )
    both = joined([fresh, known], tuple(dict.fromkeys((*fresh.classes, *known.classes))))
    return take(both, np.argsort(both.samples))


def alike(one: SoftLabels, other: SoftLabels) -> bool:
    """Whether two sets of labels can stand in one cache: they differ in samples and classes at most."""
    return (one.output, one.form, one.temperature, one.values.shape[1:-1]) == (
        other.output,
        other.form,
        other.temperature,
        other.values.shape[1:-1],
    )


def take(labels: SoftLabels, rows: NDArray[np.int64]) -> SoftLabels:
    """Some rows of soft labels."""
    return replace(labels, samples=labels.samples[rows], values=labels.values[rows])


def joined(parts: Sequence[SoftLabels], classes: Classes) -> SoftLabels:
    """Labels of different samples as one, over `classes`, with 0 for those that a part lacks."""
    wide = []
    for part in parts:
        values = np.zeros((*part.values.shape[:-1], len(classes)), dtype=np.float32)
        values[..., positions(part.classes, classes)] = part.values
        wide.append(values)
    samples = np.concatenate([part.samples for part in parts])
    return replace(parts[0], classes=classes, samples=samples, values=np.concatenate(wide))
