"""Class names and class positions from labels as they stand in a file, and a test part where a source has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedstill.common.errors import ConfigError, DataError, nearest
from fedstill.common.labels import Classes, label_space
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples, TaskData


def class_names(labels: Iterable[str]) -> Classes:
    """The distinct labels in order: by value if all are whole numbers, else by name.

    Raises:
        DataError: if there is none, or one is empty.
    """
    distinct = set(labels)
    return label_space(sorted(distinct, key=int) if all(map(_is_number, distinct)) else sorted(distinct))


def class_positions(labels: Sequence[str], classes: Classes, where: str) -> Tensor:
    """Positions of labels in a label space: (N,) int64.

    A label is a class name, or else, in a file that has numbers throughout, a position: from 0, or from 1 if the number
    of classes itself occurs and 0 does not.

    Raises:
        DataError: for a label outside the space.
    """
    place = {name: number for number, name in enumerate(classes)}
    distinct = set(labels)
    if not distinct <= place.keys() and all(map(_is_number, distinct)):
        numbers = {int(label) for label in distinct}
        first = 1 if len(classes) in numbers and 0 not in numbers else 0
        place = {label: int(label) - first for label in distinct if first <= int(label) < len(classes) + first}
    for row, label in enumerate(labels):
        if label not in place:
            raise DataError(
                f"{where}: label '{label}' of row {row + 1}",
                f"expected one of {len(classes)} classes",
                nearest(label, classes),
            )
    return torch.tensor([place[label] for label in labels], dtype=torch.int64)


def set_aside(examples: Examples, share: float) -> tuple[Examples, Examples | None]:
    """A pool and a test part from a source that has no test part of its own; the same rows in every run.

    Args:
        examples: all there are.
        share: of the examples that go to the test part, at random; 0 for none.
    """
    count = int(len(examples) * share)
    if not count:
        return examples, None
    order = numpy_rng(0, "test part").permutation(len(examples))
    return examples.take(np.sort(order[count:])), examples.take(np.sort(order[:count]))


def merged(data: TaskData, merge: Sequence[str]) -> TaskData:
    """The same examples with fewer classes.

    Args:
        data: one class for each example.
        merge: "NAME: CLASS CLASS …" for each new class; each old class once.

    Raises:
        DataError: if a class is missing, named twice or unknown.
    """
    place: dict[str, int] = {}
    names = []
    for number, line in enumerate(merge):
        name, mark, old = line.partition(":")
        names.append(name.strip())
        for label in old.split():
            if not mark or label not in data.classes or label in place:
                raise DataError(f"merge '{line}'", "expected NAME: CLASS CLASS …, each class once", "see the classes")
            place[label] = number
    # A file may number its labels with gaps: what never occurs needs no new name.
    labels = torch.cat([part.targets for part in (data.pool, data.test) if part is not None])
    occurring = {data.classes[label] for label in torch.unique(labels).tolist()}
    if left := sorted(occurring - place.keys()):
        raise DataError(f"merge = {list(merge)}", f"expected every class, and '{left[0]}' is left out", "add it")
    renumbered = torch.tensor([place.get(label, 0) for label in data.classes])

    def over(examples: Examples) -> Examples:
        return replace(examples, targets=renumbered[examples.targets])

    return replace(
        data, pool=over(data.pool), test=None if data.test is None else over(data.test), classes=label_space(names)
    )


def check_share(test_share: float) -> None:
    """Refuse a share of test examples outside [0, 1).

    Raises:
        ConfigError: if it is.
    """
    if not 0 <= test_share < 1:
        raise ConfigError(f"test-share={test_share}", "expected 0 <= value < 1")


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit()
