"""A task: what a client wants to predict, the data for it, and how a prediction is measured.

Free of Flower. A new task kind is one file in `tasks/` with a class of the `Task` protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.errors import DataError
from fedstill.common.labels import Classes
from fedstill.common.outputs import IGNORE, OutputKind, output_kind


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs with their targets.

    Attributes:
        inputs: (N, …): images (N, channels, height, width), rows (N, features), int64 token ids (N, length); as
            they were read (bytes, say) until `Task.prepare` makes floats of them.
        targets: (N,) int64 class positions, or whatever the output kind's loss takes.
        groups: natural owner of each example (writer, hospital, domain), or () if the data knows none.
        strata: (N,) int64, by what splits with label skew go where targets are not one class for each example (the
            main kind of object, say); None for the targets themselves.
    """

    inputs: Tensor
    targets: Tensor
    groups: tuple[str, ...] = ()
    strata: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{len(self.inputs)} inputs with {len(self.targets)} targets", "expected one each")
        if self.groups and len(self.groups) != len(self.inputs):
            raise DataError(f"{len(self.inputs)} inputs with {len(self.groups)} groups", "expected one each")
        if self.strata is not None and (self.strata.shape != (len(self.inputs),) or self.strata.dtype != torch.int64):
            raise DataError(
                f"strata of shape {tuple(self.strata.shape)} and type {self.strata.dtype}",
                f"expected ({len(self.inputs)},) int64",
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Sequence[int] | NDArray[np.int64] | Tensor) -> Examples:
        """The examples at those rows, in that order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        groups = tuple(self.groups[row] for row in index.tolist()) if self.groups else ()
        strata = None if self.strata is None else self.strata[index]
        return Examples(self.inputs[index], self.targets[index], groups, strata)

    def with_inputs(self, inputs: Tensor) -> Examples:
        """The same examples with other inputs (standardised, say)."""
        return replace(self, inputs=inputs)


@dataclass(frozen=True, slots=True, eq=False)
class TaskData:
    """What a task reads from its source.

    Attributes:
        pool: examples that are split into the public proxy set and the clients' private data.
        classes: the task's whole label space, in the order of the targets.
        test: examples to measure everybody with, or None: then each client is measured on a part of its own data.
        vocabulary: token ids are below it; 0 if the inputs are no tokens.
        positions: between the sample axis and the class axis of an answer: () for one answer for each sample, (L,) for
            one for each token, (height, width) for a grid.
        tokenizer: digest of what made the token ids; "" where both sides know it from the task's options.
        columns: names of an input's numbers, where what they mean depends on the source; () if it does not.
    """

    pool: Examples
    classes: Classes
    test: Examples | None = None
    vocabulary: int = 0
    positions: tuple[int, ...] = ()
    tokenizer: str = ""
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in (self.pool, self.test):
            if part is not None:
                self._check_tokens(part)
            if part is None or part.targets.dtype != torch.int64:
                continue
            labels = part.targets[part.targets != IGNORE]
            if not len(labels):
                continue
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(
                    f"label {low if low < 0 else high}",
                    f"expected 0 to {len(self.classes) - 1}, the label space of {len(self.classes)} classes",
                    "correct the labels or name all classes",
                )

    def _check_tokens(self, part: Examples) -> None:
        if not self.vocabulary or not part.inputs.numel():
            return
        low, high = int(part.inputs.min()), int(part.inputs.max())
        if part.inputs.is_floating_point() or low < 0 or high >= self.vocabulary:
            raise DataError(
                f"token id {low if low < 0 else high}", f"expected whole numbers from 0 to {self.vocabulary - 1}"
            )


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What both sides have to know of a task to exchange knowledge about it.

    Attributes:
        name: the task's name in the run.
        output: name of its output kind.
        modality: "image", "text", "tabular", "speech": which models can read it.
        classes: label space; on a client, the classes that this client's model knows.
        input_shape: shape of one input.
        vocabulary: token ids are below it; 0 if the inputs are no tokens.
        positions: of an answer, as in `TaskData`.
        tokenizer: digest, as in `TaskData`.
    """

    name: str
    output: str
    modality: str
    classes: Classes
    input_shape: tuple[int, ...]
    vocabulary: int = 0
    positions: tuple[int, ...] = ()
    tokenizer: str = ""

    @property
    def kind(self) -> OutputKind:
        """The output kind itself."""
        return output_kind(self.output)

    def over(self, classes: Classes) -> TaskSpec:
        """The same task with another label space."""
        return replace(self, classes=classes)


class Task(Protocol):
    """One kind of task: a frozen dataclass of options with three methods."""

    name: ClassVar[str]
    output: ClassVar[str]
    modality: ClassVar[str]

    def load(self, folder: Path | None) -> TaskData:
        """Read the data.

        Args:
            folder: the data folder that the user names, or None; sources that ship with a library do not need it.

        Raises:
            DataError: if it is missing or broken.
        """

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Make inputs ready for a model, with nothing but public statistics (those of the raw proxy inputs)."""

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Measures of raw outputs against true targets; the first is the task's main one, and higher is better."""


@runtime_checkable
class ReadsUnlabelled(Protocol):
    """A task that reads public samples from where there are no labels; others read a source in their own format."""

    def unlabelled(self, folder: Path | None, source: str, like: Tensor) -> Tensor:
        """Raw inputs (N, …) of that source.

        Args:
            folder: the data folder.
            source: where they are.
            like: raw inputs of the task's own data set; theirs are of the same shape and type.

        Raises:
            DataError: if they are missing or broken.
        """


@runtime_checkable
class ReadsColumns(Protocol):
    """A task whose inputs depend on what is in its source; it can read another source in the same columns."""

    def load_columns(self, folder: Path | None, columns: tuple[str, ...]) -> TaskData:
        """Read the data, its inputs in those columns.

        Args:
            folder: the data folder.
            columns: of another source of this kind, as in `TaskData`.

        Raises:
            DataError: if the data is missing or broken, or lacks a column.
        """
