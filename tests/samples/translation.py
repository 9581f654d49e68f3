"""An invented language: sixty English sentences and what each of their words is called there, in the same order."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from fedstill.common.seeding import numpy_rng

OPTIONS: dict[str, Any] = {
    "source": "captions",
    "languages": ("en", "xx"),
    "vocabulary": 60,
    "length": 4,
    "target_length": 5,
}

WORDS = {
    "the": "le",
    "a": "un",
    "dog": "kan",
    "man": "hom",
    "runs": "kurt",
    "eats": "mang",
    "here": "isi",
    "now": "nun",
}


def write(folder: Path) -> None:
    """Write captions/{train,val,test}.{en,xx}.gz."""
    (folder / "captions").mkdir()
    rng = numpy_rng(0, "translation sample")
    for part, count in (("train", 60), ("val", 40), ("test", 20)):
        sentences = [rng.choice(list(WORDS), 4, replace=False).tolist() for _ in range(count)]
        for language in ("en", "xx"):
            lines = (" ".join(WORDS[word] if language == "xx" else word for word in words) for words in sentences)
            content = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
            (folder / "captions" / f"{part}.{language}.gz").write_bytes(content)
