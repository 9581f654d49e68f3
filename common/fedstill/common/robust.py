"""A mean that few liars move little: the filter of robust statistics, for each sample on its own.

Diakonikolas et al. 2017, https://arxiv.org/abs/1703.00893: outliers that move a mean also stretch the covariance, so
that the direction of the largest variance shows them. With K vectors y_k of weights w_k, at first 1, of which a part ε
may be false:

    v = the direction in which Σ_k w_k (y_k − μ)(y_k − μ)ᵀ is largest,  μ = Σ_k w_k y_k / Σ_k w_k
    w_k ← w_k · (1 − τ_k / max τ),  τ_k = (v · (y_k − μ))²,  until ε K of the weights are gone

Weights are lowered, where the paper takes points away by a random threshold or a tail bound: nothing is drawn, and the
last step lowers no more than is left to lower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.labels import ordered, positions
from fedstill.common.outputs import output_kind

_NOTHING = 1e-12
"""A squared distance, or a weight, that is rounding."""


def robust_soft_labels(opinions: Sequence[SoftLabels], *, corrupted: float, space: Sequence[str]) -> SoftLabels:
    """Robust mean of probabilities.

    Args:
        opinions: at least one; probabilities of one output kind and temperature; any samples, any classes of `space`.
            What somebody does not know counts neither for nor against it.
        corrupted: ε, the part of the opinions on a sample that may be false: from 0 (the plain mean) to below ½.
        space: the task's label space; its order is the result's.

    Returns:
        The mean over every sample and class that at least one opinion has; a pair of them that none has is 0.

    Raises:
        KnowledgeError: if the opinions do not go together.
    """
    if len({(one.output, one.form, one.temperature, one.values.shape[1:-1]) for one in opinions}) != 1:
        raise KnowledgeError(
            f"{len(opinions)} predictions", "expected at least one, all of one output kind, form, temperature and shape"
        )
    first = opinions[0]
    if first.form != "probabilities":
        raise KnowledgeError(f"soft labels of form '{first.form}'", "expected probabilities")
    classes = ordered({name for one in opinions for name in one.classes}, space)
    samples = np.unique(np.concatenate([one.samples for one in opinions]))
    shape = (len(samples), *first.values.shape[1:-1], len(classes))
    values = np.stack([_spread(one, samples, classes, shape) for one in opinions], axis=1)
    flat = values.reshape(len(samples), len(opinions), -1)
    mean = _mean(flat, filter_weights(flat, corrupted))[0].reshape(shape)
    return SoftLabels(
        output=first.output,
        classes=classes,
        samples=samples,
        values=output_kind(first.output).normalise(mean).astype(np.float32),
        temperature=first.temperature,
        form=first.form,
    )


def filter_weights(values: NDArray[np.float64], corrupted: float) -> NDArray[np.float64]:
    """Weights (N, K) from 0 to 1 of K vectors about each of N samples; ε times the number of them is gone.

    Less is gone where the vectors do not differ.

    Args:
        values: (N, K, D); NaN for what is not known.
        corrupted: ε.
    """
    there = ~np.isnan(values)
    weights = np.asarray(there.any(-1), dtype=np.float64)
    left = corrupted * weights.sum(-1)
    # Each step takes all of a sample's furthest vector, or all that is left to take.
    for _ in range(values.shape[1]):
        mean, _known = _mean(values, weights)
        apart = np.where(there, values - mean[:, None], 0.0)
        _, _, directions = np.linalg.svd(np.sqrt(weights)[..., None] * apart, full_matrices=False)
        scores = np.einsum("nkd,nd->nk", apart, directions[:, 0]) ** 2 * (weights > 0)
        furthest = scores.max(-1, keepdims=True)
        lost = weights * np.divide(scores, furthest, out=np.zeros_like(scores), where=furthest > _NOTHING)
        total = lost.sum(-1)
        share = np.minimum(1, np.divide(left, total, out=np.zeros_like(left), where=total > _NOTHING))
        weights = np.clip(weights - lost * share[:, None], 0, None)
        left = np.clip(left - total * share, 0, None)
        if (left <= _NOTHING).all():
            break
    return weights


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean (N, D) over those that know each number, 0 where nobody does, and the weight behind it."""
    known = np.einsum("nk,nkd->nd", weights, ~np.isnan(values))
    total = np.einsum("nk,nkd->nd", weights, np.nan_to_num(values))
    return np.divide(total, known, out=np.zeros_like(total), where=known > _NOTHING), known


def _spread(
    opinion: SoftLabels, samples: NDArray[np.int64], classes: tuple[str, ...], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """An opinion over all samples and classes; NaN where it has none."""
    full = np.full(shape, np.nan)
    rows = np.searchsorted(samples, opinion.samples)
    full[rows[:, None], ..., positions(opinion.classes, classes)] = np.moveaxis(opinion.values, -1, 1)
    return full
