"""Geometry of features: how far samples lie apart, and a space that models of different width share.

Pure functions, computed in float64 where chance and order of clients must not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, pdist

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Features, Relations

_Opinion = TypeVar("_Opinion", Relations, Features)

_RIDGE = 0.01
"""Of a view's largest variance: where its samples hardly differ there is noise, which whitening would raise."""

_NOTHING = 1e-9
"""A singular value below this is rounding."""


def relative_distances(features: Tensor) -> Tensor:
    """Distances between samples over their mean (ψ_D of Park et al. 2019, https://arxiv.org/abs/1904.05068, eq. 4).

    Args:
        features: (N, D).

    Returns:
        (N (N − 1) / 2,): the pairs (0, 1), (0, 2) … (N − 2, N − 1); zeros if all samples are in one place.
    """
    distances = pdist(features)
    return distances / distances.mean().clamp_min(torch.finfo(distances.dtype).tiny) if len(distances) else distances


def pairs(matrix: Tensor) -> Tensor:
    """The pairs of a symmetric (N, N) matrix in the order of `relative_distances`."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[rows, columns]


def relations(features: Tensor, samples: NDArray[np.int64]) -> Relations:
    """The relations of samples by their features (N, D)."""
    return Relations(samples, _symmetric(relative_distances(features).numpy(), len(samples)))


def mean_relations(opinions: Sequence[Relations]) -> Relations:
    """The mean of the relations between the samples that everybody has, brought back to a mean of 1.

    Raises:
        KnowledgeError: if there is no such sample.
    """
    samples, views = _in_common(opinions)
    rows, columns = np.triu_indices(len(samples), 1)
    own = [one.values[view[rows], view[columns]].astype(np.float64) for one, view in zip(opinions, views, strict=True)]
    total = np.sum([one / one.mean() if one.any() else one for one in own], axis=0)
    return Relations(samples, _symmetric(total / total.mean() if total.any() else total, len(samples)))


def common_space(opinions: Sequence[Features], *, width: int) -> Features:
    """The directions that several models' features have most in common: MAXVAR canonical correlation.

    Kettenring 1971 (https://doi.org/10.1093/biomet/58.3.433). Each model's features are centred and whitened, so that
    neither their width nor their scale nor a rotation counts; the space is spanned by the `width` strongest left
    singular vectors of all of them side by side. Each column has mean 0, variance 1, and a positive number of the
    largest size. Where there are fewer directions, the remaining columns are 0.

    Args:
        opinions: at least one; any widths.
        width: D of the result.

    Raises:
        KnowledgeError: if there is no sample that everybody has.
    """
    samples, views = _in_common(opinions)
    # Torch, for NumPy's own linear algebra starts a thread for each core, whatever the run is allowed.
    whitened = [
        _whitened(torch.from_numpy(one.values[view]).double()) for one, view in zip(opinions, views, strict=True)
    ]
    vectors, sizes, _ = torch.linalg.svd(torch.cat(whitened, 1), full_matrices=False)
    kept = vectors[:, :width] * (sizes[:width] > _NOTHING)
    largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    columns = torch.where(largest < 0, -kept, kept) * len(samples) ** 0.5
    return Features(samples, pad(columns, (0, width - columns.shape[1])).float().numpy())


def _whitened(view: Tensor) -> Tensor:
    """Samples (N, D) in the view's principal directions, each with variance 1 (less where it hardly varies)."""
    vectors, sizes, _ = torch.linalg.svd(view - view.mean(0), full_matrices=False)
    if not sizes.max() > _NOTHING:
        return torch.zeros_like(vectors)
    whitened: Tensor = vectors * (sizes / (sizes**2 + _RIDGE * sizes.max() ** 2).sqrt())
    return whitened


def _in_common(opinions: Sequence[_Opinion]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The samples that everybody has, in the order of their ids, and at which rows."""
    samples: NDArray[np.int64] = reduce(np.intersect1d, [one.samples for one in opinions])
    if not len(samples):
        raise KnowledgeError("no proxy sample that all have", "expected at least one", reason=Reason.SAMPLES)
    orders = [np.argsort(one.samples) for one in opinions]
    return samples, [
        order[np.searchsorted(one.samples, samples, sorter=order)] for one, order in zip(opinions, orders, strict=True)
    ]


def _symmetric(values: NDArray[np.floating], count: int) -> NDArray[np.float32]:
    full = np.zeros((count, count), dtype=np.float32)
    rows, columns = np.triu_indices(count, 1)
    full[rows, columns] = full[columns, rows] = values
    return full
