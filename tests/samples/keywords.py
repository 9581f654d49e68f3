"""Two corpora of thirty documents: docsutf8/ID.txt and keys/ID.key, one packed and one not."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {"source": "corpora", "vocabulary": 60, "length": 12}


def write(folder: Path) -> None:
    """Write corpora/first.zip and the folder corpora/second."""
    place = folder / "corpora"
    (place / "second" / "docsutf8").mkdir(parents=True)
    (place / "second" / "keys").mkdir()
    with zipfile.ZipFile(place / "first.zip", "w") as archive:
        for number in range(30):
            text, keys = _document(number, "graph theory")
            archive.writestr(f"first/docsutf8/{number}.txt", text)
            archive.writestr(f"first/keys/{number}.key", keys)
    for number in range(30):
        text, keys = _document(number, "neural networks")
        (place / "second" / "docsutf8" / f"{number}.txt").write_text(text)
        (place / "second" / "keys" / f"{number}.key").write_text(keys)


def _document(number: int, phrase: str) -> tuple[str, str]:
    other = ("search", "ranking", "parsing")[number % 3]
    return f"We study {phrase} and then {other}, with {phrase} again.", f"{phrase}\n{other.upper()}\nnever found\n"
