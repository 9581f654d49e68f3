"""Do methods differ over several data sets? Mean ranks, Friedman's test, and Nemenyi's critical difference.

Demšar 2006, https://jmlr.org/papers/v7/demsar06a.html, section 3.2.2. With k methods, N data sets and the mean rank R_j
of method j (1 is the best, ties share their ranks' mean):

    χ²_F = 12 N / (k (k + 1)) · (Σ_j R_j² − k (k + 1)² / 4),   k − 1 degrees of freedom
    CD   = q_α √(k (k + 1) / (6 N)),   q_α the Studentised range over √2

Two methods differ at level α if their mean ranks are at least CD apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

FEWEST = 3
"""Data sets from which on ranks say anything."""

Q_005 = (
    1.960,
    2.344,
    2.569,
    2.728,
    2.850,
    2.948,
    3.031,
    3.102,
    3.164,
    3.219,
    3.268,
    3.313,
    3.354,
    3.391,
    3.426,
    3.458,
    3.489,
    3.517,
    3.544,
    3.569,
    3.593,
    3.616,
    3.637,
    3.658,
    3.678,
    3.696,
    3.714,
    3.732,
    3.749,
)
"""q at α = 0.05 for 2, 3, … methods (Demšar's table 5 has the first nine)."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Methods over data sets.

    Attributes:
        sets: how many data sets.
        mean: mean rank of each method, best first.
        statistic, p: Friedman's χ² and the probability of one as large if the methods were equal.
        critical: Nemenyi's critical difference at α = 0.05; None for more methods than are tabulated.
        groups: longest runs of methods, best first, that do not differ from each other.
    """

    sets: int
    mean: Mapping[str, float]
    statistic: float
    p: float
    critical: float | None
    groups: tuple[tuple[str, ...], ...]


def ranks(scores: Mapping[str, Sequence[float]]) -> Ranks:
    """Ranks of methods by their scores, higher is better.

    Args:
        scores: one for each data set, by method; at least two methods.
    """
    names = list(scores)
    count, sets = len(names), len(scores[names[0]])
    rows = [_ranked([scores[name][place] for name in names]) for place in range(sets)]
    means = {name: math.fsum(row[column] for row in rows) / sets for column, name in enumerate(names)}
    ordered = dict(sorted(means.items(), key=lambda item: item[1]))
    squares = math.fsum(rank * rank for rank in means.values())
    statistic = max(0.0, 12 * sets / (count * (count + 1)) * (squares - count * (count + 1) ** 2 / 4))
    critical = Q_005[count - 2] * math.sqrt(count * (count + 1) / (6 * sets)) if count - 2 < len(Q_005) else None
    return Ranks(
        sets=sets,
        mean=ordered,
        statistic=statistic,
        p=_chi_square_above(statistic, count - 1),
        critical=critical,
        groups=_groups(ordered, critical) if critical is not None else (),
    )


def _ranked(scores: Sequence[float]) -> list[float]:
    return [
        sum(other > score for other in scores) + (1 + sum(other == score for other in scores)) / 2 for score in scores
    ]


def _chi_square_above(value: float, freedom: int) -> float:
    halves = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))


def _groups(means: Mapping[str, float], critical: float) -> tuple[tuple[str, ...], ...]:
    names, found = list(means), []
    end = 0
    for first, name in enumerate(names):
        last = max(place for place, other in enumerate(names) if means[other] - means[name] < critical)
        if last > first and last + 1 > end:
            found.append(tuple(names[first : last + 1]))
            end = last + 1
    return tuple(found)
