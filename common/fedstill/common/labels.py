"""Label spaces are lists of names: aligned by name, never by position.

A client that knows three of ten classes has a label space of three names. Nothing is averaged by position by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import DataError, KnowledgeError, Reason, nearest

Classes = tuple[str, ...]


def label_space(names: Iterable[str]) -> Classes:
    """A label space from class names, in the given order.

    Raises:
        DataError: if there is none, or one is empty or given twice.
    """
    classes = tuple(names)
    if not classes:
        raise DataError("label space []", "expected at least one class name")
    for name in classes:
        if not name:
            raise DataError(f"label space {list(classes)}", "expected no empty class name")
    if len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise DataError(f"label space with {', '.join(twice)} twice", "expected every class name once")
    return classes


def positions(own: Sequence[str], space: Sequence[str]) -> NDArray[np.int64]:
    """Where each class of `own` stands in `space`: int64 of shape (len(own),).

    Raises:
        KnowledgeError: if a class of `own` is not in `space`.
    """
    index = {name: place for place, name in enumerate(space)}
    for name in own:
        if name not in index:
            raise KnowledgeError(
                f"class '{name}'",
                "expected a class of the task's label space",
                nearest(name, space),
                reason=Reason.CLASSES,
            )
    return np.array([index[name] for name in own], dtype=np.int64)


def ordered(own: Iterable[str], space: Sequence[str]) -> Classes:
    """The classes of `own` in the order of `space`."""
    known = set(own)
    return tuple(name for name in space if name in known)
