"""Texts of two classes in a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {"source": "words.csv", "vocabulary": 50, "length": 6}


def write(folder: Path) -> None:
    """Write words.csv with 40 texts."""
    rows = [f"the {'sun' if row % 2 else 'rain'} of day {row},{['good', 'bad'][row % 2]}" for row in range(40)]
    (folder / "words.csv").write_text("text,label\n" + "\n".join(rows))
