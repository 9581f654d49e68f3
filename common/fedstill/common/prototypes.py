"""Prototypes of one label space: how a client makes them, their mean, and a mean without one's own share.

Rows and columns are aligned by class name; a class is averaged over those who have examples of it. Pure functions,
accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedstill.common.errors import KnowledgeError
from fedstill.common.knowledge import Prototypes
from fedstill.common.labels import Classes, ordered, positions

_LEAST_MASS = 0.01
"""A mean with less on one's own classes says nothing of them: what is there may be a codec's rounding."""


def class_means(values: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each class (C, D), 0 for a class without rows, and their number (C,).

    Args:
        values: (N, D).
        targets: (N,) int64 positions of classes.
        classes: C.
    """
    counts = torch.bincount(targets, minlength=classes)
    sums = torch.zeros(classes, values.shape[1], dtype=torch.float64).index_add_(0, targets, values.double())
    return (sums / counts.clamp_min(1).unsqueeze(-1)).float(), counts


def from_means(
    classes: Classes,
    counts: Tensor,
    *,
    round: int,
    features: Tensor | None = None,
    predictions: Tensor | None = None,
) -> Prototypes:
    """Prototypes of the classes that there are examples of.

    Args:
        classes: C names, in the order of all rows, and of the columns of `predictions`.
        counts: (C,) examples of each.
        round: of the answer.
        features: (C, D), or None.
        predictions: (C, C), or None.
    """
    rows = torch.nonzero(counts).flatten()
    none = torch.zeros(len(counts), 0)
    return Prototypes(
        classes=tuple(classes[row] for row in rows.tolist()),
        counts=counts[rows].numpy(),
        features=(none if features is None else features)[rows].numpy(),
        predictions=(none if predictions is None else predictions)[rows].numpy(),
        columns=() if predictions is None else classes,
        round=round,
    )


def mean_prototypes(opinions: Sequence[Prototypes], *, space: Classes, round: int) -> Prototypes:
    """Mean of each class's rows, weighted by the counts, which are added up: Σ_k n_kc v_kc / Σ_k n_kc.

    A class that a model lacks has probability 0 in its predictions, so that rows still sum to 1.

    Args:
        opinions: at least one; features of one width, and all or none with predictions.
        space: the task's label space; its order is the result's.
        round: of the opinions.

    Raises:
        KnowledgeError: if the opinions do not go together.
    """
    if len({(one.features.shape[1], bool(one.columns)) for one in opinions}) != 1:
        raise KnowledgeError(
            f"{len(opinions)} prototypes with features of widths {sorted({one.features.shape[1] for one in opinions})}",
            "expected at least one, of one width, all or none with predictions",
        )
    classes = ordered({name for one in opinions for name in one.classes}, space)
    columns = ordered({name for one in opinions for name in one.columns}, space)
    counts = np.zeros(len(classes), dtype=np.int64)
    features = np.zeros((len(classes), opinions[0].features.shape[1]))
    predictions = np.zeros((len(classes), len(columns)))
    for one in opinions:
        rows, weight = positions(one.classes, classes), one.counts.astype(np.float64)[:, None]
        counts[rows] += one.counts
        features[rows] += weight * one.features
        predictions[np.ix_(rows, positions(one.columns, columns))] += weight * one.predictions
    return Prototypes(
        classes=classes,
        counts=counts,
        features=(features / counts[:, None]).astype(np.float32),
        # Rounding may lead above 1.
        predictions=np.minimum(predictions / counts[:, None], 1).astype(np.float32),
        columns=columns,
        round=round,
    )


def predictions_over(
    told: Prototypes, own: Classes, *, without: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean predictions for each of one's own classes, over those classes (C, C), and how many are behind each row (C,).

    Mass on classes that the own model lacks is left out, and the rest brought to a sum of 1. Rows of classes that
    nobody told of, or of which nothing is left, are 0, and so is their number.

    Args:
        told: the mean over all.
        own: C classes.
        without: one's own share of the mean, to be taken out: (n v̄ − n_k v_k) / (n − n_k). Predictions (C, C) over the
            own classes, and how many are behind each row, (C,).
    """
    counts, values = np.zeros(len(own), dtype=np.int64), np.zeros((len(own), len(own)))
    rows, columns = ordered(told.classes, own), ordered(told.columns, own)
    mine, theirs = positions(rows, own), positions(rows, told.classes)
    counts[mine] = told.counts[theirs]
    values[np.ix_(mine, positions(columns, own))] = told.predictions[np.ix_(theirs, positions(columns, told.columns))]
    total = values * counts[:, None]
    if without is not None:
        share, behind = (part.numpy() for part in without)
        # A codec's rounding may leave a number below 0.
        total = np.maximum(total - share * behind[:, None], 0)
        counts = np.maximum(counts - behind, 0)
    mass = total.sum(-1)
    there = (counts > 0) & (mass > _LEAST_MASS * counts)
    found = np.divide(total, mass[:, None], out=np.zeros_like(total), where=there[:, None])
    return torch.from_numpy(found).float(), torch.from_numpy(np.where(there, counts, 0))


def features_over(told: Prototypes, own: Classes) -> tuple[Tensor, Tensor]:
    """Mean features (C, D) for each of one's own classes, and how many are behind each (C,); 0 where nobody told."""
    counts, values = np.zeros(len(own), dtype=np.int64), np.zeros((len(own), told.features.shape[1]), np.float32)
    rows = ordered(told.classes, own)
    mine, theirs = positions(rows, own), positions(rows, told.classes)
    counts[mine], values[mine] = told.counts[theirs], told.features[theirs]
    return torch.from_numpy(values), torch.from_numpy(counts)
