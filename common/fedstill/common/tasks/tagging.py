"""A tag for each word: names of people, products and places, from column files as CoNLL has them.

Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419 (the format); Derczynski et al. 2017,
https://aclanthology.org/W17-4418 (WNUT17).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.bio import is_tag, spans_of, tag_classes, tag_rows, tag_targets, tags_of
from fedstill.common.data.classes import check_share, set_aside
from fedstill.common.data.content import (
    bare_name,
    check_encoding,
    find_files,
    part_of,
    read_text,
    told_as_data_errors,
)
from fedstill.common.data.preparation import SeldomWords
from fedstill.common.data.readers import WordLines
from fedstill.common.data.scaling import prepared
from fedstill.common.data.texts import word_ids
from fedstill.common.data.words import shape_of
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes
from fedstill.common.tagging_metrics import entity_f1, token_f1
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage

SUFFIXES = (".conll", ".annotated", ".bio", ".iob", ".iob2", ".tsv")


@dataclass(frozen=True, slots=True)
class TaggingTask:
    """Find the names in a text: a BIO tag for each word.

    A file has a word a line and an empty line between sentences; the word stands in the first column and the tag in the
    last, with tabs or spaces between. The part of a file is told by its name: "test", "validation" or else "train".

    Attributes:
        source: a file, a pattern or a folder of .conll, .annotated, .bio, .iob, .iob2 and .tsv files, packed or not.
        parts: the parts to learn from.
        test_parts: the parts to measure with.
        owner: "file" if each file is somebody's own; "" if nobody knows.
        vocabulary: token ids are below it.
        length: words of a sentence that are read.
        seldom: a word that the proxy set has less often is read as its shape (capitals, digits, marks); 0 for none.
        encoding: of the files.
        test_share: share set aside to measure with, where there is no test part.
    """

    name: ClassVar[str] = "tagging"
    output: ClassVar[str] = "token-level"
    modality: ClassVar[str] = "text"

    source: str
    parts: tuple[str, ...] = ("train",)
    test_parts: tuple[str, ...] = ("test",)
    owner: str = ""
    vocabulary: int = 8192
    length: int = 48
    seldom: int = 3
    encoding: str = "utf-8"
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(2, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length)
        check.at_least(0, seldom=self.seldom)
        check.one_of(("", "file"), owner=self.owner)
        check_encoding(self.encoding)
        check_share(self.test_share)

    def load(self, folder: Path | None) -> TaskData:
        """Read the sentences as ids of words and of their shapes (N, length, 2); kept for the next call."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """One id for each word, (N, length): of the word itself, or of its shape if the proxy set has it seldom."""
        return prepared(SeldomWords.of(proxy.numpy(), seldom=self.seldom, vocabulary=self.vocabulary), inputs)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of words with blanks between."""
        told = WordLines(self.vocabulary, self.length, self.encoding)
        return Usage(SeldomWords.of(proxy.numpy(), seldom=self.seldom, vocabulary=self.vocabulary), told)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """F1 of whole names (entity-f1), then of tags other than O (token-f1)."""
        labels = logits.argmax(-1)
        return {
            "entity-f1": entity_f1(tag_rows(labels, targets, classes), tag_rows(targets, targets, classes)),
            "token-f1": token_f1(labels, targets, classes),
        }


_Sentence = tuple[list[str], list[str]]
"""Words and their tags."""


@lru_cache(maxsize=2)
def _load(task: TaggingTask, folder: Path | None) -> TaskData:
    parts: dict[str, dict[str, list[_Sentence]]] = {}
    with told_as_data_errors(task.source):
        for path in find_files(folder, task.source, SUFFIXES):
            name = bare_name(path)
            parts.setdefault(part_of(name), {})[name] = _read(path, task.encoding)
    learnt = tuple(parts) if len(parts) == 1 else task.parts
    for part in learnt:
        if part not in parts:
            known = ", ".join(sorted(parts))
            raise DataError(f"part '{part}' of '{task.source}'", f"expected one of {known}", "set the task's 'parts'")
    files = {name: rows for part in learnt for name, rows in parts[part].items()}
    tested = {
        name: rows for part in task.test_parts if part not in learnt for name, rows in parts.get(part, {}).items()
    }
    kinds = sorted({kind for rows in files.values() for _, tags in rows for kind, _, _ in spans_of(tags)})
    if not kinds:
        raise DataError(f"data '{task.source}'", "expected at least one tag other than O")
    classes = tag_classes(kinds)
    pool, test = _examples(task, files, classes), _examples(task, tested, classes) if tested else None
    if test is None:
        pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, classes, test, task.vocabulary, positions=(task.length,))


def _read(path: Path, encoding: str) -> list[_Sentence]:
    """The sentences of a file, their tags as IOB2."""
    sentences: list[_Sentence] = [([], [])]
    # Not splitlines: a word may be a separator that it knows and the format does not.
    for number, line in enumerate(read_text(path, encoding=encoding).split("\n"), start=1):
        cells = line.strip("\r\n\t ").split("\t" if "\t" in line else None)
        if cells in ([], [""]):
            sentences.append(([], []))
            continue
        if len(cells) < 2 or not is_tag(cells[-1]):
            raise DataError(f"{path}: line {number} '{line[:40]}'", "expected a word and a tag: O, B-KIND or I-KIND")
        sentences[-1][0].append(cells[0])
        sentences[-1][1].append(cells[-1])
    whole = [(words, tags_of(spans_of(tags), len(tags))) for words, tags in sentences if words]
    if not whole:
        raise DataError(f"{path}", "expected at least one sentence")
    return whole


def _examples(task: TaggingTask, files: dict[str, list[_Sentence]], classes: Classes) -> Examples:
    rows = [row for sentences in files.values() for row in sentences]
    spelt = [[word.lower() for word in words] for words, _ in rows]
    shapes = [[shape_of(word) for word in words] for words, _ in rows]
    ids = [word_ids(form, vocabulary=task.vocabulary, length=task.length) for form in (spelt, shapes)]
    targets = torch.cat(
        [
            tag_targets([tags for _, tags in sentences], classes, length=task.length, where=name)
            for name, sentences in files.items()
        ]
    )
    owners = [name.rpartition(".")[0] if task.owner else "" for name, sentences in files.items() for _ in sentences]
    strata = torch.tensor([_main_kind(tags, classes) for _, tags in rows])
    return Examples(torch.stack(ids, -1), targets, tuple(owners) if task.owner else (), strata)


def _main_kind(tags: list[str], classes: Classes) -> int:
    """Number of the kind that a sentence has most spans of, from 1; 0 for a sentence without any."""
    kinds = [kind for kind, _, _ in spans_of(tags)]
    return 1 + classes.index(f"B-{max(kinds, key=kinds.count)}") // 2 if kinds else 0
