"""Collections for search in TREC's format: documents, queries, and judgements of what is relevant to what."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedstill.common.data.content import read_text
from fedstill.common.errors import DataError

Numbering = Literal["num", "order"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found.

    Attributes:
        title: one line.
        text: without the title, which some collections repeat at its beginning.
    """

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Collection:
    """What a search engine is measured with.

    Attributes:
        documents: by document number, in the order of the files.
        queries: by topic number, in the order of the files.
        judgements: (topic, document) → relevance; 0 or less is not relevant.
    """

    documents: Mapping[str, Document]
    queries: Mapping[str, str]
    judgements: Mapping[tuple[str, str], int]


def read_trec(paths: Iterable[Path], *, numbering: Numbering, encoding: str = "utf-8") -> Collection:
    """A collection from its files: <doc> elements, <top> elements, and lines "topic 0 document relevance".

    Args:
        paths: files in any order; what a file holds is told by its content, and other files are left out.
        numbering: what judgements call a topic: its <num>, or its place in the file from 1 (as in Cranfield).
        encoding: of the files.

    Raises:
        DataError: if one of the three is missing or broken, or a judgement is about something that is not there.
    """
    documents: dict[str, Document] = {}
    queries: dict[str, str] = {}
    judgements: dict[tuple[str, str], int] = {}
    for path in paths:
        text = read_text(path, encoding=encoding)
        for entry in _elements(text, "doc"):
            documents[_part(entry, "docno", path)] = _document(entry)
        for place, entry in enumerate(_elements(text, "top"), 1):
            number = _part(entry, "num", path)
            queries[number if numbering == "num" else str(place)] = _part(entry, "title", path)
        if "qrel" in path.name.lower():
            judgements |= _judgements(text, path)
    for what, found in (("<doc>", documents), ("<top>", queries), ("judgements", judgements)):
        if not found:
            raise DataError(
                f"{', '.join(path.name for path in paths)}",
                f"expected {what}",
                "name all files with the task's 'source'",
            )
    for topic, document in judgements:
        if topic not in queries or document not in documents:
            raise DataError(
                f"a judgement of query {topic} and document {document}",
                f"expected one of {len(queries)} queries and {len(documents)} documents",
                "see the task's 'numbering'",
            )
    return Collection(documents, queries, judgements)


def _document(entry: str) -> Document:
    title, text = _words(_element(entry, "title")), _words(_element(entry, "text"))
    return Document(title, text.removeprefix(title).strip())


def _judgements(text: str, path: Path) -> dict[tuple[str, str], int]:
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 4 or not re.fullmatch(r"-?\d+", cells[3]):
            raise DataError(f"{path}: line {number}, '{line[:60]}'", 'expected "topic 0 document relevance"')
        found[cells[0], cells[2]] = int(cells[3])
    return found


def _part(entry: str, tag: str, path: Path) -> str:
    words = _words(_element(entry, tag)).removeprefix("Number: ")
    if not words:
        raise DataError(f"{path}: '{_words(entry)[:60]}'", f"expected a <{tag}> that is not empty", "mend the file")
    return words


def _element(entry: str, tag: str) -> str:
    return next(iter(_elements(entry, tag)), "")


def _elements(text: str, tag: str) -> list[str]:
    # No XML parser: a file of documents has no root, and older collections have stray marks.
    return re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL | re.IGNORECASE)


def _words(text: str) -> str:
    return " ".join(html.unescape(text).split())
