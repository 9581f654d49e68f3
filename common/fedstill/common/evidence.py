"""What one task's labels say about another's, where both speak about the same samples.

How labels of two tasks go together is read off their consensus on the proxy set; nobody has to know it. A command with
an artist in it asks for music, a four is even: so a task with few examples hears from a task with many, whatever their
label spaces, and without one more byte. With the consensus q(x) of the task itself, t̄ its mean over the labelled
positions of a sample, and r_l(x) another task's labels at its positions l:

    together     n_ts  = Σ_x Σ_l t̄_t(x) r_ls(x)
    given t      P(s|t) = (n_ts + κ P(s)) / (Σ_s n_ts + κ), P(s) = the mean of r_s
    evidence     e_t(x) = Σ_l Σ_s r_ls(x) ln (P(s|t) / P(s))
    corrected    q_t(x) ← q_t(x) · exp(w · c · e_t(x)), normalised; repeated with t̄ of the result

This is naive Bayes with soft counts, a few steps of the expectation maximisation of Dawid & Skene 1979
(https://doi.org/10.2307/2346806), in which the other tasks' labels are the observers. Labels at several positions are
not independent, hence a weight w below 1. Tasks that have nothing to do with each other (what is said, and who says it)
seem to by chance; how much, the same labels tell with the samples of one task in another order:

    confidence   c = max(0, 1 − 2 G₀ / G),  G = Σ_ts n_ts ln (P(s|t) / P(s)), G₀ its mean over random orders
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedstill.common.knowledge import SoftLabels
from fedstill.common.outputs import output_kind
from fedstill.common.seeding import derive, numpy_rng

_PRIOR = 5.0
"""κ: so many labels are added to those that were counted, as if the tasks had nothing to do with each other."""
_STEPS = 5
"""Counting and correcting in turn."""
_ORDERS = 20
"""What chance does is the mean over so many."""
_LEAST = 1e-9


def corrected(
    consensus: Mapping[str, SoftLabels], groups: Mapping[str, str], *, weight: float, seed: int
) -> dict[str, SoftLabels]:
    """Each task's consensus with the evidence of all other tasks that speak about the same samples.

    Args:
        consensus: by task.
        groups: by task, whose samples they are: ids mean the same within a group only.
        weight: w >= 0; with 0 nothing changes.
        seed: of the orders that tell what chance does.

    Returns:
        Soft labels as they came, where a task's output kind has no classes, its values are no probabilities, or nobody
        else speaks about its samples.
    """
    told = {name: labels for name, labels in consensus.items() if _has_classes(labels)}
    found = dict(consensus)
    for name, labels in told.items():
        others = [
            other
            for other_name, other in told.items()
            # The same label space twice is one subject, merged already.
            if groups[other_name] == groups[name] and other.classes != labels.classes
        ]
        if weight and others:
            found[name] = _with(labels, others, weight, derive(seed, name))
    return found


def _has_classes(labels: SoftLabels) -> bool:
    return output_kind(labels.output).has_classes and labels.form == "probabilities"


def _with(labels: SoftLabels, others: list[SoftLabels], weight: float, seed: int) -> SoftLabels:
    before = _rows(labels)
    rows = before
    for _ in range(_STEPS):
        evidence = np.zeros((len(rows), rows.shape[-1]))
        for other in others:
            _, mine, theirs = np.intersect1d(labels.samples, other.samples, assume_unique=True, return_indices=True)
            if len(mine):
                evidence[mine] += weight * _evidence(rows[mine], _rows(other)[theirs], seed)
        rows = _moved(before, evidence)
    return SoftLabels(
        labels.output,
        labels.classes,
        labels.samples,
        rows.reshape(labels.values.shape).astype(np.float32),
        labels.temperature,
        labels.form,
    )


def _moved(rows: NDArray[np.float64], evidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, L, T) labels times exp of (N, T) evidence, normalised; blank rows stay blank."""
    # In logarithms: the evidence of many positions is beyond what exp can tell.
    scores = np.log(rows, out=np.full_like(rows, -np.inf), where=rows > 0) + evidence[:, None]
    most = scores.max(-1, keepdims=True)
    odds = np.exp(scores - np.where(np.isfinite(most), most, 0))
    moved: NDArray[np.float64] = odds / np.maximum(odds.sum(-1, keepdims=True), 1)
    return moved


def _rows(labels: SoftLabels) -> NDArray[np.float64]:
    """(N, L, C), with L = 1 where a label is one row."""
    values = labels.values.astype(np.float64)
    return values.reshape(len(values), -1, values.shape[-1])


def _evidence(own: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """C · e (N, T) of (N, L, S) labels for (N, L', T) ones."""
    labelled = (own.sum(-1) > 0).sum(-1)
    mean = own.sum(1) / np.maximum(labelled, 1)[:, None]
    per_class = other.sum(1)  # (N, S)
    prior = np.maximum(per_class.sum(0), _LEAST)
    prior /= prior.sum()
    ratios, gain = _ratios(mean, per_class, prior)
    rng = numpy_rng(seed, "orders")
    chance = np.mean([_ratios(mean, rng.permutation(per_class), prior)[1] for _ in range(_ORDERS)])
    confidence = max(0.0, 1 - 2 * float(chance) / gain) if gain > 0 else 0.0
    evidence: NDArray[np.float64] = confidence * per_class @ ratios.T
    return evidence


def _ratios(
    mean: NDArray[np.float64], per_class: NDArray[np.float64], prior: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Ln (P(s|t) / P(s)) (T, S), and G."""
    together = mean.T @ per_class
    given = (together + _PRIOR * prior) / (together.sum(-1, keepdims=True) + _PRIOR)
    ratios = np.log(given / prior)
    return ratios, float((together * ratios).sum())
