"""Pairs of texts and how much alike they are: semantic matching, as in SICK.

Marelli et al. 2014 (SICK), https://aclanthology.org/L14-1314.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.classes import check_share, set_aside
from fedstill.common.data.content import bare_name, check_encoding, find_files, part_of, told_as_data_errors
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TextLines
from fedstill.common.data.tables import Column, Table, joined, read_csv
from fedstill.common.data.texts import token_ids
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes
from fedstill.common.ranking_metrics import pearson, spearman
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage

SUFFIXES = (".tsv", ".csv")


@dataclass(frozen=True, slots=True)
class MatchingTask:
    """Tell how much alike two texts are.

    Files with "test" in their names are the test part, all others are learnt from. Scores are scaled to 0 … 1 by the
    ends of their scale, which everybody knows.

    Attributes:
        source: a file, a pattern, or a folder of .tsv and .csv files with a header.
        first, second: columns of the two texts.
        score: column of the score.
        lowest, highest: ends of the scores' scale.
        bins: parts of the scale, of equal width, by which "dirichlet" and "pathological" splits tell pairs apart.
        vocabulary: token ids are below it.
        length: words of a text that are read.
        delimiter, encoding: of the files.
        test_share: share set aside to measure with, where there is no test part.
    """

    name: ClassVar[str] = "matching"
    output: ClassVar[str] = "regression"
    modality: ClassVar[str] = "text"

    source: str
    first: Column = "sentence_A"
    second: Column = "sentence_B"
    score: Column = "relatedness_score"
    lowest: float = 1.0
    highest: float = 5.0
    bins: int = 4
    vocabulary: int = 8192
    length: int = 32
    delimiter: str = "\t"
    encoding: str = "utf-8"
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(2, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length, bins=self.bins)
        check_share(self.test_share)
        check_encoding(self.encoding)
        if not self.lowest < self.highest:
            raise ConfigError(f"lowest={self.lowest}, highest={self.highest}", "expected lowest < highest")
        if len(self.delimiter) != 1:
            raise ConfigError(f"delimiter={self.delimiter!r}", "expected one character", "such as '\\t' or ','")

    def load(self, folder: Path | None) -> TaskData:
        """Read the pairs as token ids (N, 2, length), scores as (N, 1); kept for the next call in this process."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of two texts with a tab between."""
        told = TextLines(self.vocabulary, self.length, texts=2, encoding=self.encoding)
        return Usage(AsRead(), told, scale=(self.lowest, self.highest))

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Spearman's rank correlation and Pearson's."""
        predicted, true = logits.flatten(), targets.flatten()
        return {"spearman": spearman(predicted, true), "pearson": pearson(predicted, true)}


@lru_cache(maxsize=2)
def _load(task: MatchingTask, folder: Path | None) -> TaskData:
    parts: dict[bool, list[Table]] = {False: [], True: []}
    with told_as_data_errors(task.source):
        for path in find_files(folder, task.source, SUFFIXES):
            table = read_csv(path, header=True, delimiter=task.delimiter, encoding=task.encoding)
            parts[part_of(bare_name(path)) == "test"].append(table)
    if not parts[False]:
        raise DataError(f"data '{task.source}'", "expected a file without 'test' in its name", "there is none to learn")
    pool, test = _examples(task, parts[False]), _examples(task, parts[True]) if parts[True] else None
    if test is None:
        pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, ("score",), test, task.vocabulary)


def _examples(task: MatchingTask, tables: list[Table]) -> Examples:
    table = joined(tables)
    pairs = [
        token_ids(table.cells(column), vocabulary=task.vocabulary, length=task.length)
        for column in (task.first, task.second)
    ]
    read = torch.tensor(table.numbers(task.score, lowest=task.lowest, highest=task.highest))
    scores = (read - task.lowest) / (task.highest - task.lowest)
    strata = (scores * task.bins).long().clamp_max(task.bins - 1)
    return Examples(torch.stack(pairs, 1), scores[:, None], strata=strata)
