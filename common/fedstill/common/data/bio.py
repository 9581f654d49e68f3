"""Spans of words as a tag on each word, and back: B-KIND begins a span, I-KIND goes on with it, O is outside.

Ramshaw and Marcus 1995, https://aclanthology.org/W95-0107 (the variant IOB2, in which every span begins with B).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedstill.common.data.classes import class_positions
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes, label_space
from fedstill.common.outputs import IGNORE

OUTSIDE = "O"

Span = tuple[str, int, int]
"""Kind, number of the first word, number of the word behind the last one."""


def is_tag(name: str) -> bool:
    """Whether a class is a tag: O, B-KIND or I-KIND."""
    return name == OUTSIDE or (name[:2] in ("B-", "I-") and len(name) > 2)


def tag_classes(kinds: Iterable[str]) -> Classes:
    """The tags of those kinds, O first.

    Raises:
        DataError: if a kind is given twice.
    """
    return label_space([OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in "BI")])


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans in order. As conlleval has it, an I that goes on with nothing begins a span.

    Raises:
        DataError: for a tag of another form.
    """
    spans: list[Span] = []
    for place, tag in enumerate(tags):
        if not is_tag(tag):
            raise DataError(f"tag '{tag}'", "expected O, B-KIND or I-KIND", "or name the tags' column")
        if tag == OUTSIDE:
            continue
        kind = tag[2:]
        if tag[0] == "I" and spans and (spans[-1][0], spans[-1][2]) == (kind, place):
            spans[-1] = (kind, spans[-1][1], place + 1)
        else:
            spans.append((kind, place, place + 1))
    return spans


def tags_of(spans: Iterable[Span], count: int) -> list[str]:
    """The tags of `count` words; what lies beyond is left out."""
    tags = [OUTSIDE] * count
    for kind, first, end in spans:
        for place in range(first, min(end, count)):
            tags[place] = f"{'B' if place == first else 'I'}-{kind}"
    return tags


def tag_targets(rows: Sequence[Sequence[str]], classes: Classes, *, length: int, where: str) -> Tensor:
    """Tags as positions in a label space: (N, length) int64, IGNORE where there is no word.

    Raises:
        DataError: for a tag outside the space; the message names `where`.
    """
    targets = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    there = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    targets[there] = class_positions([tag for row in rows for tag in row[:length]], classes, where)
    return targets


def tag_rows(labels: Tensor, targets: Tensor, classes: Classes) -> list[list[str]]:
    """The names of labels (N, L), row by row, where the targets (N, L) say that there is a label."""
    return [
        [classes[label] for label in row[asked].tolist()] for row, asked in zip(labels, targets != IGNORE, strict=True)
    ]
