"""Search relevance: put the documents that answer a query before those that do not.

Students learn from titles: a document's title is a query whose answer is its abstract (MacAvaney et al. 2019,
https://arxiv.org/abs/1707.00189), to be found among abstracts of its topic. They are measured on queries that people
wrote and judged (Cranfield: Cleverdon 1967), of which none is ever learnt from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.content import check_encoding, find_files, told_as_data_errors
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TextLines
from fedstill.common.data.texts import token_ids
from fedstill.common.data.trec import Collection, Document, read_trec
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes
from fedstill.common.ranking_metrics import ndcg, reciprocal_rank
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage

SUFFIXES = (".xml", ".trec", ".sgml", ".txt")


@dataclass(frozen=True, slots=True)
class SearchTask:
    """Rank candidate documents by how well they answer a query.

    To learn from, and as proxy samples: every document's title as a query; candidates are its abstract without the
    title, and other abstracts of its topic. To measure: every judged query; candidates are its relevant documents (at
    most half of the candidates, drawn at random), those judged not relevant, and other documents of the topic that most
    of its relevant ones have. The documents are public, as in a search engine; private is who asks what.

    A document's topic is the word of `topics` that it holds most often; it is also its owner, and what "dirichlet" and
    "pathological" splits tell queries apart by.

    Attributes:
        source: folder or pattern of a collection in TREC's format: <doc>, <top> and qrels files.
        numbering: what judgements call a query: its <num>, or its place in the file from 1 ("order", as in Cranfield).
        candidates: documents to be ranked for a query.
        topics: words by which documents are sorted; a document without any is "other". () for no topics.
        vocabulary: token ids are below it.
        length: words of a text that are read.
        encoding: of the files.
    """

    name: ClassVar[str] = "search"
    output: ClassVar[str] = "ranking"
    modality: ClassVar[str] = "text"

    source: str
    numbering: Literal["num", "order"] = "order"
    candidates: int = 16
    topics: tuple[str, ...] = ()
    vocabulary: int = 8192
    length: int = 64
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        check.at_least(2, vocabulary=self.vocabulary, candidates=self.candidates)
        check.at_least(1, length=self.length)
        check_encoding(self.encoding)
        if len({topic.lower() for topic in (*self.topics, "other")}) != len(self.topics) + 1:
            raise ConfigError(f"topics={list(self.topics)}", "expected different words, none of them 'other'")

    def load(self, folder: Path | None) -> TaskData:
        """Read token ids (N, 1 + candidates, length), the query first, and relevance (N, candidates)."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of a query and its candidates with tabs between."""
        told = TextLines(self.vocabulary, self.length, texts=1 + self.candidates, encoding=self.encoding)
        return Usage(AsRead(), told)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """NDCG of the ten best candidates, and the mean reciprocal rank."""
        return {"ndcg@10": ndcg(logits, targets, top=10), "mrr": reciprocal_rank(logits, targets)}


@lru_cache(maxsize=2)
def _load(task: SearchTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        paths = find_files(folder, task.source, SUFFIXES)
        collection = read_trec(paths, numbering=task.numbering, encoding=task.encoding)
    shelf = _shelf(task, collection)
    classes = tuple(f"candidate-{number}" for number in range(1, task.candidates + 1))
    return TaskData(_titles(task, shelf), classes, _judged(task, shelf, collection), task.vocabulary)


_Relevance = dict[int, int]
"""What is known of a query: row of a document → relevance."""


@dataclass(frozen=True, slots=True, eq=False)
class _Shelf:
    """The documents that can be candidates.

    Attributes:
        place: of each document by its number.
        titles: (D,).
        texts: token ids (D, length).
        topics: (D,) positions in the task's topics; the last is "other".
    """

    place: dict[str, int]
    titles: tuple[str, ...]
    texts: Tensor
    topics: NDArray[np.int64]


def _shelf(task: SearchTask, collection: Collection) -> _Shelf:
    whole = {number: one for number, one in collection.documents.items() if one.title and one.text}
    if len(whole) < 2 * task.candidates:
        raise DataError(
            f"data '{task.source}' with {len(whole)} documents that have a title and a text",
            f"expected at least {2 * task.candidates}, twice the candidates",
            "lower the task's 'candidates'",
        )
    texts = token_ids([one.text for one in whole.values()], vocabulary=task.vocabulary, length=task.length)
    topics = np.array([_topic(one, task.topics) for one in whole.values()])
    return _Shelf(
        {number: row for row, number in enumerate(whole)}, tuple(one.title for one in whole.values()), texts, topics
    )


def _topic(document: Document, topics: tuple[str, ...]) -> int:
    words = Counter(re.findall(r"\w+", f"{document.title} {document.text}".lower()))
    counts = [words[topic.lower()] for topic in topics]
    return counts.index(max(counts)) if any(counts) else len(topics)


def _titles(task: SearchTask, shelf: _Shelf) -> Examples:
    relevance = [{row: 1} for row in range(len(shelf.titles))]
    shown = [
        _shown(task, shelf, known, topic=int(shelf.topics[row]), purpose=f"title {row}")
        for row, known in enumerate(relevance)
    ]
    examples = _examples(task, shelf, shelf.titles, shown, relevance)
    if not task.topics:
        return examples
    names = (*task.topics, "other")
    groups = tuple(names[topic] for topic in shelf.topics)
    return Examples(examples.inputs, examples.targets, groups, torch.from_numpy(shelf.topics))


def _judged(task: SearchTask, shelf: _Shelf, collection: Collection) -> Examples | None:
    judged: dict[str, _Relevance] = {}
    for (query, document), value in collection.judgements.items():
        if document in shelf.place:
            judged.setdefault(query, {})[shelf.place[document]] = max(value, 0)
    queries = [query for query in collection.queries if any(judged.get(query, {}).values())]
    if not queries:
        return None
    relevance = [judged[query] for query in queries]
    shown = []
    for query, known in zip(queries, relevance, strict=True):
        topics = Counter(int(shelf.topics[row]) for row, value in known.items() if value)
        shown.append(_shown(task, shelf, known, topic=topics.most_common(1)[0][0], purpose=f"query {query}"))
    return _examples(task, shelf, [collection.queries[query] for query in queries], shown, relevance)


def _shown(task: SearchTask, shelf: _Shelf, known: _Relevance, *, topic: int, purpose: str) -> NDArray[np.int64]:
    """Rows of a query's candidates in random order, the same in every run."""
    rng = numpy_rng(0, "candidates", purpose)
    rows = np.array(list(known), dtype=np.int64)
    relevant = np.array([value > 0 for value in known.values()])
    kept = rng.permutation(rows[relevant])[: task.candidates // 2]
    free = rng.permutation(np.setdiff1d(np.arange(len(shelf.titles)), rows))
    near = free[np.argsort(shelf.topics[free] != topic, kind="stable")]
    return rng.permutation(np.concatenate([kept, rows[~relevant], near])[: task.candidates])


def _examples(
    task: SearchTask,
    shelf: _Shelf,
    queries: Sequence[str],
    shown: list[NDArray[np.int64]],
    relevance: list[_Relevance],
) -> Examples:
    asked = token_ids(queries, vocabulary=task.vocabulary, length=task.length)
    inputs = torch.cat([asked[:, None], shelf.texts[torch.from_numpy(np.stack(shown))]], 1)
    targets = [[known.get(row, 0) for row in rows.tolist()] for rows, known in zip(shown, relevance, strict=True)]
    return Examples(inputs, torch.tensor(targets, dtype=torch.float32))
