"""Recommendation: which items will a user like who rated others? Reads the files of MovieLens.

Harper and Konstan 2015 (MovieLens), https://doi.org/10.1145/2827872. Users who are measured were never learnt from
("strong generalisation", Liang et al. 2018, https://arxiv.org/abs/1802.05814).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.classes import check_share, set_aside
from fedstill.common.data.content import find_task_folder, told_as_data_errors
from fedstill.common.data.preparation import Shares
from fedstill.common.data.scaling import prepared
from fedstill.common.data.tables import read_csv
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes
from fedstill.common.ranking_metrics import hit_rate, ndcg
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage

_LOWEST = 0.5
"""Rating; 0 stands for none."""


@dataclass(frozen=True, slots=True)
class RecommendationTask:
    """Rank the items that a user has not rated, from the ratings that the user shows.

    An example is a user: a share of the ratings, drawn at random once and for all, is hidden, and the items that the
    user liked among them are to be found. Users without one are left out. A proxy sample is the profile of a user who
    made it public.

    Attributes:
        source: folder with u.data and, for `owner`, u.user (MovieLens-100K), or with ratings.csv (later ones).
        items: only so many items are looked at, those with the most ratings; 0 for all that somebody rated.
        hidden: share of a user's ratings to be found.
        liked: a rating from this on means that the user liked the item.
        highest: rating.
        owner: which group a user belongs to: "occupation", "gender" or "age" (decade); "" for none.
        test_share: share of the users to measure with.
    """

    name: ClassVar[str] = "recommendation"
    output: ClassVar[str] = "ranking"
    modality: ClassVar[str] = "tabular"

    source: str
    items: int = 0
    hidden: float = 0.5
    liked: float = 4.0
    highest: float = 5.0
    owner: Literal["occupation", "gender", "age", ""] = ""
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(0, items=self.items)
        check.positive(liked=self.liked)
        check_share(self.test_share)
        if not 0 < self.hidden < 1:
            raise ConfigError(f"hidden={self.hidden}", "expected 0 < value < 1")
        if self.liked > self.highest:
            raise ConfigError(f"liked={self.liked}", f"expected at most highest={self.highest}")

    def load(self, folder: Path | None) -> TaskData:
        """Read shown ratings (N, items), 0 for none, and relevance (N, items): 1 liked, 0 not, −1 shown."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Ratings as shares of the highest."""
        return prepared(Shares(self.highest), inputs)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Arrays of ratings; what a user has rated is not recommended."""
        return Usage(Shares(self.highest), new_only=True)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """NDCG of ten recommendations, and the share of users who like one of them."""
        return {"ndcg@10": ndcg(logits, targets, top=10), "hit-rate@10": hit_rate(logits, targets, top=10)}


Ratings = dict[str, dict[str, float]]
"""User → item → rating."""


@lru_cache(maxsize=2)
def _load(task: RecommendationTask, folder: Path | None) -> TaskData:
    place = find_task_folder(folder, task.source)
    with told_as_data_errors(task.source):
        ratings = _ratings(task, place)
        groups = _groups(task, place)
    counts = Counter(item for rated in ratings.values() for item in rated)
    # Ties by name, so that every side keeps the same items.
    items = sorted(sorted(counts, key=lambda item: (-counts[item], item))[: task.items or None], key=_natural)
    shown, relevance, users = [], [], []
    for user, rated in ratings.items():
        row, target = _split(task, user, rated, items)
        if (target > 0).any():
            shown.append(row)
            relevance.append(target)
            users.append(user)
    if not users:
        raise DataError(
            f"{place}", f"expected a user with two ratings, one of {task.liked:g}", "lower the task's 'liked'"
        )
    owners = tuple(_owner(groups, user, place) for user in users) if task.owner else ()
    pool, test = set_aside(Examples(torch.stack(shown), torch.stack(relevance), owners), task.test_share)
    return TaskData(pool, tuple(items), test)


def _split(task: RecommendationTask, user: str, rated: dict[str, float], items: list[str]) -> tuple[Tensor, Tensor]:
    """The ratings that a user shows: (items,), and the relevance of the others: (items,)."""
    ratings = torch.tensor([rated.get(item, 0.0) for item in items])
    known = ratings.nonzero().flatten()
    order = known[numpy_rng(0, "hidden", user).permutation(len(known)).tolist()]
    hidden = torch.zeros(len(items), dtype=torch.bool)
    # One rating at least is shown.
    hidden[order[: min(round(len(known) * task.hidden), len(known) - 1)]] = True
    relevance = (ratings >= task.liked).float()
    relevance[~hidden & (ratings > 0)] = -1
    return ratings.masked_fill(hidden, 0), relevance


def _ratings(task: RecommendationTask, place: Path) -> Ratings:
    path = _file(place, "u.data")
    if path:
        table = read_csv(path, header=False, delimiter="\t")
    else:
        path = _file(place, "ratings.csv")
        if not path:
            raise DataError(f"{place}", "expected u.data or ratings.csv", "name a folder of MovieLens with 'source'")
        table = read_csv(path, header=True)
    found: Ratings = {}
    ratings = table.numbers(2, lowest=_LOWEST, highest=task.highest)
    for user, item, rating in zip(table.cells(0), table.cells(1), ratings, strict=True):
        found.setdefault(user, {})[item] = rating
    return found


def _groups(task: RecommendationTask, place: Path) -> dict[str, str]:
    """The group of each user, from lines "user|age|gender|occupation|zip code"."""
    if not task.owner:
        return {}
    path = _file(place, "u.user")
    if not path:
        raise DataError(f"{place}", f"expected u.user for owner = '{task.owner}'", 'or set owner = ""')
    table = read_csv(path, header=False, delimiter="|", encoding="latin-1")
    cells = table.cells({"age": 1, "gender": 2, "occupation": 3}[task.owner])
    if task.owner == "age":
        cells = [f"{cell[:-1] or '0'}0s" for cell in cells]
    return dict(zip(table.cells(0), cells, strict=True))


def _owner(groups: dict[str, str], user: str, place: Path) -> str:
    if user not in groups:
        raise DataError(f"{place}: user {user} of u.data", f"expected one of {len(groups)} users of u.user")
    return groups[user]


def _file(place: Path, name: str) -> Path | None:
    """A file of that name in a folder, packed or not."""
    return next((path for suffix in ("", ".gz", ".xz") if (path := place / f"{name}{suffix}").is_file()), None)


def _natural(item: str) -> tuple[int, str]:
    return (int(item), "") if item.isdigit() else (0, item)
