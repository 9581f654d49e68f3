"""Measures of order: how well scores rank candidates, follow other numbers, or tell two classes apart.

Pure functions of scores and true values; ties among scores share their ranks, and a measure without anything to
measure is what chance would give, so that no client reports NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of a (N,) tensor, lowest first; equal values share the mean of theirs: (N,) float64."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    mean: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return mean[place]


def pearson(values: Tensor, others: Tensor) -> float:
    """Correlation of two (N,) tensors; 0 if one of them is constant."""
    first, second = (part.double() - part.double().mean() for part in (values, others))
    # Not the product of norms: equal values correlate by 1, to the last bit.
    scale = ((first @ first) * (second @ second)).sqrt()
    return float(first @ second / scale) if scale > 0 else 0.0


def spearman(values: Tensor, others: Tensor) -> float:
    """Rank correlation of two (N,) tensors; 0 if one of them is constant."""
    return pearson(ranks(values), ranks(others))


def auc(logits: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve, mean over classes of each against the rest; ½ if no class can be told from another.

    The probability that a sample of the class scores above one of another class, ties counting half (Hanley and McNeil
    1982, https://doi.org/10.1148/radiology.143.1.7063747). A class scores by its log-odds.

    Args:
        logits: (N, C).
        targets: (N,) int64.
    """
    areas = []
    for label in range(logits.shape[-1]):
        own = targets == label
        positive, negative = int(own.sum()), int((~own).sum())
        if positive and negative:
            rest = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1).double().logsumexp(1)
            total = float(ranks(logits[:, label].double() - rest)[own].sum())
            areas.append((total - positive * (positive + 1) / 2) / (positive * negative))
    return sum(areas) / len(areas) if areas else 0.5


def ndcg(scores: Tensor, relevance: Tensor, *, top: int) -> float:
    """Normalised discounted cumulative gain of the `top` best candidates, gain = relevance; 0 for no samples.

    Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418.

    Args:
        scores: (N, M).
        relevance: (N, M), −1 for a candidate that does not take part; samples without a relevant one do not count.
        top: how many candidates are looked at.
    """
    found, best = _ordered(scores, relevance), _ordered(relevance, relevance)
    discount = torch.arange(2, found.shape[1] + 2, dtype=torch.float64).log2().reciprocal()
    discount[top:] = 0
    return float((found @ discount / (best @ discount)).mean()) if len(found) else 0.0


def reciprocal_rank(scores: Tensor, relevance: Tensor) -> float:
    """Mean of 1 / rank of the first relevant candidate; 0 for no samples. Arguments as `ndcg`."""
    found = _ordered(scores, relevance) > 0
    return float((1 / (found.int().argmax(1) + 1).double()).mean()) if len(found) else 0.0


def hit_rate(scores: Tensor, relevance: Tensor, *, top: int) -> float:
    """Share of samples with a relevant candidate among the `top` best; 0 for no samples. Arguments as `ndcg`."""
    found = _ordered(scores, relevance)[:, :top] > 0
    return float(found.any(1).double().mean()) if len(found) else 0.0


def _ordered(scores: Tensor, relevance: Tensor) -> Tensor:
    """Relevance from the best score to the worst, of the samples that have a relevant candidate: (N', M) float64."""
    samples = (relevance > 0).any(1)
    scores, relevance = scores[samples], relevance[samples]
    order = scores.masked_fill(relevance < 0, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return relevance.double().clamp_min(0).gather(1, order)
