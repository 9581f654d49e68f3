"""Sixty sentences of WNUT17's form: a word, a tab and a BIO tag a line, an empty line between sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {"source": "names", "vocabulary": 60, "length": 6}


def write(folder: Path) -> None:
    """Write names/train.conll and names/test.conll."""
    (folder / "names").mkdir()
    for part, count in (("train", 60), ("test", 20)):
        lines = []
        for number in range(count):
            person = (("Ann", "Lee"), ("Bob", "May"))[number % 2]
            lines += ["then\tO", f"{person[0]}\tB-person", f"{person[1]}\tI-person", "saw\tO"]
            lines += [f"{('Rome', 'Oslo', 'Bonn')[number % 3]}\tB-location", ""]
        (folder / "names" / f"{part}.conll").write_text("\n".join(lines) + "\n")
