"""Aggregation of predictions and of weights: pure functions, accumulated in float64, tested with exact numbers.

Contributions are aligned by sample id and class name. A class that only some clients know is averaged over those
clients alone, and probabilities are then brought back to a sum of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import EllipsisType

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError
from fedstill.common.knowledge import Parameters, SoftLabels
from fedstill.common.labels import Classes, ordered, positions
from fedstill.common.outputs import output_kind

_TOTAL, _WEIGHT = "opinions", "opinion-weights"


def mean_soft_labels(
    opinions: Sequence[SoftLabels], weights: Sequence[float] | None = None, *, space: Classes
) -> SoftLabels:
    """Weighted mean of predictions: q_c(x) ∝ Σ_k w_k p_kc(x) / Σ_k w_k over the clients k that know x and c.

    Args:
        opinions: at least one; same output kind, form and temperature; any samples, any classes of `space`.
        weights: one weight ≥ 0 for each opinion, or None for equal ones.
        space: the task's label space; its order is the result's.

    Returns:
        The mean over every sample and class that at least one opinion has; a pair of them that none has is 0.

    Raises:
        KnowledgeError: if the opinions do not go together.
    """
    first = _same(opinions)
    shares = _shares([1.0] * len(opinions) if weights is None else weights, len(opinions))
    kind = output_kind(first.output)
    classes = ordered({name for opinion in opinions for name in opinion.classes}, space)
    if all(other.classes == classes and np.array_equal(other.samples, first.samples) for other in opinions):
        samples = first.samples
        mean = kind.combine([opinion.values for opinion in opinions], shares)
    else:
        samples = np.unique(np.concatenate([opinion.samples for opinion in opinions]))
        if kind.selects:
            mean = kind.combine([_spread(opinion, samples, classes) for opinion in opinions], shares)
        else:
            mean = _aligned_mean(opinions, shares, samples, classes)
    return SoftLabels(
        output=first.output,
        classes=classes,
        samples=samples,
        values=(kind.normalise(mean) if first.form == "probabilities" else mean).astype(np.float32),
        temperature=first.temperature,
        form=first.form,
    )


def stacked(
    opinions: Sequence[SoftLabels], *, space: Classes
) -> tuple[NDArray[np.int64], Classes, NDArray[np.float32], NDArray[np.bool_]]:
    """Opinions over the same samples and classes, for those who need more than their mean.

    Args:
        opinions: as for `mean_soft_labels`.
        space: the task's label space; its order is the result's.

    Returns:
        All N samples that somebody has and all C classes; the values (K, N, …, C), 0 where an opinion has none; and
        where it has one: (K, N, 1, …, C).

    Raises:
        KnowledgeError: if the opinions do not go together.
    """
    first = _same(opinions)
    classes = ordered({name for opinion in opinions for name in opinion.classes}, space)
    samples = np.unique(np.concatenate([opinion.samples for opinion in opinions]))
    values = np.stack([_spread(opinion, samples, classes) for opinion in opinions])
    there = [np.outer(np.isin(samples, one.samples), np.isin(classes, one.classes)) for one in opinions]
    positions = (1,) * (first.values.ndim - 2)
    return samples, classes, values, np.stack(there).reshape(len(opinions), len(samples), *positions, len(classes))


def disagreement(opinions: Sequence[SoftLabels], *, space: Classes) -> NDArray[np.float64]:
    """How far opinions lie apart: H(mean_k p_k) − mean_k H(p_k), the Jensen–Shannon divergence of those on each sample.

    Houlsby et al. 2011 (https://arxiv.org/abs/1112.5745, equation 2), with models in place of draws from a posterior.

    Args:
        opinions: as for `mean_soft_labels`, of a kind whose opinions have a mean and an entropy. Of a class that one
            does not know it says what the mean of those says that do, all brought to a sum of 1 again.
        space: the task's label space.

    Returns:
        (N,) in nats, >= 0, for each sample that somebody has, in the order of their ids.

    Raises:
        KnowledgeError: if the opinions do not go together.
        UnsupportedError: for a kind without entropy.
    """
    kind = output_kind(_same(opinions).output)
    _, _, values, there = stacked([_softened(opinion) for opinion in opinions], space=space)
    has = there.any(-1, keepdims=True)
    filled = values.astype(np.float64)
    if not there.all():
        mean = filled.sum(0) / there.sum(0).clip(min=1)
        filled = kind.normalise(np.where(there, filled, mean)) * has
    pooled = filled.sum(0) / has.sum(0)
    own = np.stack([kind.entropy(torch.from_numpy(one)).numpy() for one in filled])
    counts = has.reshape(own.shape)
    apart = kind.entropy(torch.from_numpy(pooled)).numpy() - (own * counts).sum(0) / counts.sum(0)
    result: NDArray[np.float64] = apart.clip(min=0)
    return result


def sharpened(labels: SoftLabels, temperature: float) -> SoftLabels:
    """Entropy reduction of an aggregate: softmax(q / T) of its probabilities (DS-FL, Itahara et al. 2021, eq. 8).

    Args:
        labels: probabilities.
        temperature: T > 0. Nearly even labels of C classes get harder for T < 1 / C only, and more even above it; 0.1
            makes two-class labels nearly hard.

    Raises:
        KnowledgeError: if the labels are no probabilities.
    """
    _check_probabilities(labels, "sharpen")
    kind = output_kind(labels.output)
    hard = kind.sharpen(torch.from_numpy(labels.values).double(), temperature).float().numpy()
    return SoftLabels(labels.output, labels.classes, labels.samples, hard, 1.0, labels.form)


def powered(labels: SoftLabels, exponent: float) -> SoftLabels:
    """An aggregate raised to a power: q_c ∝ p_c^β (enhanced ERA, Azuma et al. 2025, eq. 5).

    Args:
        labels: probabilities.
        exponent: β > 0; above 1 labels get harder, below 1 more even, and 1 changes nothing. Unlike softmax(p / T), it
            does not depend on how many classes there are.

    Raises:
        KnowledgeError: if the labels are no probabilities.
    """
    _check_probabilities(labels, "raise to a power")
    raised = output_kind(labels.output).power(torch.from_numpy(labels.values), exponent).numpy()
    return SoftLabels(labels.output, labels.classes, labels.samples, raised, labels.temperature, labels.form)


def hardened(labels: SoftLabels, temperature: float) -> SoftLabels:
    """An aggregate made harder while every class keeps its share of it: see `OutputKind.harden`.

    Args:
        labels: probabilities.
        temperature: T > 0; the smaller, the harder; 1 changes nothing.

    Raises:
        KnowledgeError: if the labels are no probabilities.
    """
    _check_probabilities(labels, "harden")
    hard = output_kind(labels.output).harden(torch.from_numpy(labels.values), temperature).numpy()
    return SoftLabels(labels.output, labels.classes, labels.samples, hard, labels.temperature, labels.form)


def doubted(labels: SoftLabels, doubt: float) -> SoftLabels:
    """Labels mixed with even ones: (1 − u) q_c + u / C, where u is the doubt; blank rows stay blank.

    Args:
        labels: distributions over classes.
        doubt: u, 0 to 1.

    Raises:
        KnowledgeError: if the labels are no probabilities.
    """
    _check_probabilities(labels, "doubt")
    labelled = labels.values.sum(-1, keepdims=True) > 0
    mixed = (1 - doubt) * labels.values + np.float32(doubt / len(labels.classes)) * labelled
    return replace(labels, values=mixed.astype(np.float32))


def running_mean(
    memory: dict[str, torch.Tensor], mean: SoftLabels, count: int, *, space: Classes, size: int, whole: bool = False
) -> SoftLabels:
    """The mean of all opinions on some samples, over all rounds: Σ_r K_r p̄_r / Σ_r K_r.

    Args:
        memory: of the method; the opinions are added to it.
        mean: of this round's opinions.
        count: K_r, how many they were.
        space: the task's label space.
        size: number of proxy samples.
        whole: tell all samples that somebody ever had an opinion about.

    Returns:
        The mean over this round's samples, or over all, and every class that some opinion about one of them knew.
    """
    shape = (size, *mean.values.shape[1:-1], len(space))
    total = memory.setdefault(_TOTAL, torch.zeros(shape))
    weight = memory.setdefault(_WEIGHT, torch.zeros(size, len(space)))
    rows = torch.from_numpy(mean.samples)
    columns = torch.from_numpy(positions(mean.classes, space))
    total[rows[:, None], ..., columns] += count * torch.from_numpy(mean.values).movedim(-1, 1)
    weight[rows[:, None], columns] += count
    if whole:
        rows = torch.nonzero(weight.sum(1) > 0).flatten()
    known = torch.nonzero(weight[rows].sum(0) > 0).flatten()
    spread = weight[rows][:, known].reshape(len(rows), *[1] * (total.dim() - 2), len(known))
    values = (total[rows][..., known] / spread.clamp_min(1e-12)).double().numpy()
    classes = tuple(space[place] for place in known)
    normal = output_kind(mean.output).normalise(values).astype(np.float32)
    return replace(mean, classes=classes, samples=rows.numpy(), values=normal)


def mean_parameters(opinions: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """Weighted mean of models of one architecture: Σ_k w_k θ_k / Σ_k w_k (McMahan et al. 2017, algorithm 1).

    Accumulated in float64 and given back in each array's own type (integers rounded).

    Raises:
        KnowledgeError: if the models differ.
    """
    if not opinions:
        raise KnowledgeError("no parameters", "expected at least one model")
    first = opinions[0]
    for other in opinions[1:]:
        if other.model != first.model or other.layout() != first.layout():
            raise KnowledgeError(f"models '{first.model}' and '{other.model}'", "expected one architecture")
    shares = _shares(weights, len(opinions))
    averaged = {}
    for name, array in first.weights.items():
        total = np.zeros(array.shape)
        for share, opinion in zip(shares, opinions, strict=True):
            total += share * opinion.weights[name].astype(np.float64)
        mean = total / shares.sum()
        averaged[name] = np.asarray(np.rint(mean) if array.dtype.kind in "iu" else mean).astype(array.dtype)
    return Parameters(first.model, averaged)


def _softened(labels: SoftLabels) -> SoftLabels:
    """Raw outputs as probabilities at temperature 1."""
    if labels.form == "probabilities":
        return labels
    soft = output_kind(labels.output).soften(torch.from_numpy(labels.values), 1.0).numpy()
    return replace(labels, values=soft, form="probabilities", temperature=1.0)


def _check_probabilities(labels: SoftLabels, purpose: str) -> None:
    if labels.form != "probabilities":
        raise KnowledgeError(f"soft labels of form '{labels.form}'", f"expected probabilities to {purpose}")


def _shares(weights: Sequence[float], count: int) -> NDArray[np.float64]:
    shares = np.asarray(weights, dtype=np.float64)
    if len(shares) != count or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise KnowledgeError(f"weights {shares.tolist()}", f"expected {count} finite numbers >= 0, not all 0")
    return shares


def _same(opinions: Sequence[SoftLabels]) -> SoftLabels:
    if not opinions:
        raise KnowledgeError("no predictions", "expected at least one contribution")
    first = opinions[0]
    for other in opinions[1:]:
        for what in ("output", "form", "temperature"):
            if getattr(other, what) != getattr(first, what):
                raise KnowledgeError(
                    f"predictions of {what} {getattr(first, what)} and {getattr(other, what)}", "expected the same"
                )
        if other.values.shape[1:-1] != first.values.shape[1:-1]:
            raise KnowledgeError(
                f"predictions at {first.values.shape[1:-1]} and {other.values.shape[1:-1]} positions",
                "expected the same",
            )
    return first


def _aligned_mean(
    opinions: Sequence[SoftLabels], shares: NDArray[np.float64], samples: NDArray[np.int64], classes: Classes
) -> NDArray[np.float64]:
    """The mean over those that know each sample and class; 0 where nobody does."""
    total = np.zeros((len(samples), *opinions[0].values.shape[1:-1], len(classes)))
    weight = np.zeros(total.shape)
    for opinion, share in zip(opinions, shares, strict=True):
        rows = np.searchsorted(samples, opinion.samples)
        where = (rows[:, None], ..., positions(opinion.classes, classes))
        _add(total, where, share * np.moveaxis(opinion.values.astype(np.float64), -1, 1))
        _add(weight, where, np.full(np.moveaxis(opinion.values, -1, 1).shape, share))
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _spread(opinion: SoftLabels, samples: NDArray[np.int64], classes: Classes) -> NDArray[np.float32]:
    """An opinion over all samples and classes; zeros where it has none."""
    full = np.zeros((len(samples), *opinion.values.shape[1:-1], len(classes)), dtype=np.float32)
    rows = np.searchsorted(samples, opinion.samples)
    full[rows[:, None], ..., positions(opinion.classes, classes)] = np.moveaxis(opinion.values, -1, 1)
    return full


def _add(
    into: NDArray[np.float64], where: tuple[NDArray[np.int64] | EllipsisType, ...], values: NDArray[np.float64]
) -> None:
    # Rows and columns are unique within one opinion, so that += touches every cell once. NumPy puts the two advanced
    # indices first: values have their class axis moved to 1.
    into[where] += values
