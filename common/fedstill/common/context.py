"""What both sides remember of earlier messages, so that a codec can code the next one in their context.

Memory is as exact as the two sides can agree on: roots of probabilities in 8 bits, made from what came out of the codec
and not from what went in. Square root, product and rounding to whole numbers are the same on every IEEE 754 machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fedstill.common.cache import LabelCache
from fedstill.common.codec import Codec, with_context
from fedstill.common.knowledge import Knowledge, SoftLabels

LARGEST = 2**22
"""Numbers of an array; what is longer has no context."""

_STEPS = 255


@dataclass(frozen=True, slots=True, eq=False)
class Remembered:
    """Soft labels as both sides remember them.

    Attributes:
        classes: in the order of the last axis.
        samples: (N,) int64 ids of proxy samples.
        roots: (N, …, C) uint8, √p in steps of 1/255; a row of zeros has no label.
    """

    classes: tuple[str, ...]
    samples: NDArray[np.int64]
    roots: NDArray[np.uint8]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell two memories apart."""
        content = hashlib.sha256(json.dumps([self.classes, self.roots.shape]).encode())
        content.update(self.samples.astype("<i8").tobytes())
        content.update(self.roots.tobytes())
        return content.hexdigest()[:16]

    def about(self, samples: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities (N, …, C) of these samples and classes; NaN where nothing is remembered."""
        found = np.full((len(samples), *self.roots.shape[1:-1], len(classes)), np.nan, dtype=np.float32)
        place = {name: column for column, name in enumerate(self.classes)}
        own = [column for column, name in enumerate(classes) if name in place]
        theirs = [place[classes[column]] for column in own]
        _, rows, known = np.intersect1d(samples, self.samples, assume_unique=True, return_indices=True)
        values = (self.roots[known][..., theirs].astype(np.float32) / np.float32(_STEPS)) ** 2
        values[~self.roots[known].any(-1)] = np.nan
        part = np.full((len(rows), *found.shape[1:]), np.nan, dtype=np.float32)
        part[..., own] = values
        found[rows] = part
        return found

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For a store: the inverse of `from_arrays`."""
        classes = np.frombuffer(json.dumps(self.classes).encode(), dtype=np.uint8).copy()
        return {"classes": classes, "samples": self.samples, "roots": self.roots}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Remembered:
        """The inverse of `arrays`."""
        classes = tuple(json.loads(arrays["classes"].tobytes()))
        return cls(classes, arrays["samples"].astype(np.int64), arrays["roots"].astype(np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class Memories:
    """What a client remembers of one task.

    Attributes:
        own: what it told last.
        heard: what it was told last.
        told: all that it was told, for a method whose clients keep it.
    """

    own: Remembered | None = None
    heard: Remembered | None = None
    told: LabelCache | None = None


Recall = Callable[[str, int, str], Memories]
"""(run, version of the student, task) → what the client remembers of that time."""


def remember(knowledge: Knowledge | None) -> Remembered | None:
    """What is remembered of knowledge that came out of a codec; None unless it is of probabilities."""
    if not isinstance(knowledge, SoftLabels) or knowledge.form != "probabilities" or knowledge.values.size > LARGEST:
        return None
    roots = np.rint(np.sqrt(np.clip(knowledge.values.astype(np.float64), 0, 1)) * _STEPS)
    return Remembered(tuple(knowledge.classes), knowledge.samples, roots.astype(np.uint8))


def remember_through(knowledge: Knowledge | None, codec: Codec) -> Remembered | None:
    """What the other side will remember of knowledge that is about to go through a codec.

    None for a codec that makes no use of it.
    """
    coder = with_context(codec)
    if coder is None or not isinstance(knowledge, SoftLabels):
        return None
    values = cast("NDArray[np.float32]", coder.decode(coder.encode({"values": knowledge.values}))["values"])
    return remember(replace(knowledge, values=values))


def known(
    memories: Sequence[Remembered | None], samples: NDArray[np.int64], classes: Sequence[str]
) -> list[NDArray[np.float32] | None]:
    """What a codec is told of samples and classes, memory by memory; nothing where that would be too many numbers."""
    count = len(samples) * len(classes)
    return [
        None if one is None or count * math.prod(one.roots.shape[1:-1]) > LARGEST else one.about(samples, classes)
        for one in memories
    ]
