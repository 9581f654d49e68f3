"""Sixty documents of two topics and ten judged queries in TREC's format, numbered as Cranfield numbers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedstill.common.seeding import numpy_rng

OPTIONS: dict[str, Any] = {
    "source": "library",
    "candidates": 6,
    "topics": ("heat", "wing"),
    "vocabulary": 200,
    "length": 12,
}


def write(folder: Path) -> None:
    """Write library/docs.xml, library/queries.xml and library/qrels.txt."""
    (folder / "library").mkdir()
    rng = numpy_rng(0, "search sample")
    documents, queries, judgements = [], [], []
    for number in range(1, 61):
        topic = ("heat", "wing")[number % 2]
        words = [f"word{word}" for word in rng.choice(60, 6, replace=False)]
        title = f"{topic} {words[0]} {words[1]} ."
        documents.append(
            f"<doc>\n<docno>{number}</docno>\n<title>{title}</title>\n<author>x</author>\n"
            f"<text>{title}\nthe {topic} of {' '.join(words)}</text>\n</doc>"
        )
        if number <= 10:
            # The old number of a query is not what the judgements call it.
            queries.append(f"<top>\n<num> {3 * number}</num>\n<title>\nwhat {topic} has {words[2]} .\n</title>\n</top>")
            judgements += [f"{number} 0 {number} 1", f"{number} 0 {number + 20} 1", f"{number} 0 {number + 40} 0"]
    library = folder / "library"
    (library / "docs.xml").write_text("\n".join(documents))
    (library / "queries.xml").write_text("<?xml version='1.0'?>\n<xml>\n" + "\n".join(queries) + "\n</xml>\n")
    (library / "qrels.txt").write_text("\n".join(judgements) + "\n")
