"""Ratings of made-up users with made-up tastes, in the files of MovieLens-100K.

A user's taste is that of the occupation plus something of one's own, an item's appeal is what it has in common with it;
users rate what is popular and what they like. No figure got with them says anything about real people's films.
`python tests/samples/recommendation.py FOLDER/ml-100k` writes as many users and items as MovieLens-100K has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedstill.common.seeding import numpy_rng

OPTIONS: dict[str, Any] = {"source": "movies", "owner": "occupation"}

OCCUPATIONS = ("artist", "doctor", "engineer", "farmer", "lawyer", "musician", "student", "writer")


def write(folder: Path) -> None:
    """Write movies/u.data and movies/u.user: 120 users and 40 items."""
    generate(folder / "movies", users=120, items=40, ratings=15)


def generate(folder: Path, *, users: int, items: int, ratings: int, tastes: int = 8, seed: int = 0) -> None:
    """Write u.data and u.user.

    Args:
        folder: is made.
        users, items: how many.
        ratings: of a user, on average; at least 5.
        tastes: numbers that describe a taste.
        seed: of all of it.
    """
    folder.mkdir(parents=True)
    rng = numpy_rng(seed, "recommendation sample")
    group = rng.integers(len(OCCUPATIONS), size=users)
    taste = rng.normal(size=(len(OCCUPATIONS), tastes))[group] + rng.normal(size=(users, tastes))
    appeal = taste @ rng.normal(size=(tastes, items)) / np.sqrt(2 * tastes)
    popularity = -1.0 * np.log(1 + rng.permutation(items))
    lines: list[str] = []
    for user in range(users):
        chance = np.exp(popularity + appeal[user])
        count = min(items, 5 + int(rng.exponential(max(1, ratings - 5))))
        for item in rng.choice(items, count, replace=False, p=chance / chance.sum()):
            rating = int(np.clip(np.round(3.2 + appeal[user, item] + 0.7 * rng.normal()), 1, 5))
            lines.append(f"{user + 1}\t{item + 1}\t{rating}\t{880_000_000 + len(lines)}")
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    people = [
        f"{user + 1}|{18 + int(rng.integers(50))}|{'MF'[int(rng.integers(2))]}|{OCCUPATIONS[one]}|00000"
        for user, one in enumerate(group)
    ]
    (folder / "u.user").write_text("\n".join(people) + "\n", encoding="latin-1")


if __name__ == "__main__":
    generate(Path(sys.argv[1]), users=943, items=1682, ratings=106)
