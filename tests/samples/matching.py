"""Sixty pairs of four words as SICK has them; the score tells how many words they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedstill.common.seeding import numpy_rng

OPTIONS: dict[str, Any] = {"source": "pairs", "vocabulary": 50, "length": 6}

_WORDS = ("a", "man", "dog", "boy", "runs", "eats", "sleeps", "fast", "here", "now", "red", "old")


def write(folder: Path) -> None:
    """Write pairs/SICK_train.tsv and pairs/SICK_test.tsv."""
    (folder / "pairs").mkdir()
    rng = numpy_rng(0, "matching sample")
    for part, count in (("train", 60), ("test", 20)):
        lines = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"]
        for number in range(count):
            shared = number % 5
            words = rng.permutation(_WORDS).tolist()
            first, second = words[:4], [*words[:shared], *words[4 : 8 - shared]]
            lines.append(f"{number}\t{' '.join(first)}\t{' '.join(second)}\t{1 + shared}\tNEUTRAL")
        (folder / "pairs" / f"SICK_{part}.tsv").write_text("\n".join(lines) + "\n")
