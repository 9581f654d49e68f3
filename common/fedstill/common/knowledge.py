"""Knowledge: what the sides tell each other about a task, as frozen values that refuse to be malformed.

`SoftLabels` are predictions on proxy samples, `Parameters` the weights of a model. Each turns into a header of plain
values and a mapping of arrays, and back: that is all that the wire and the checkpoints know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.labels import Classes
from fedstill.common.outputs import output_kind

Header = dict[str, str | int | float | list[str]]
Arrays = Mapping[str, NDArray[np.generic]]
Layout = Mapping[str, tuple[tuple[int, ...], str]]
Form = Literal["probabilities", "logits"]

LARGEST_LOGIT = 1e4
"""A raw output above this is no prediction but an attack or a diverged model; softmax is saturated far below it."""

LARGEST_PARAMETER = 1e6
"""A weight above this comes from a diverged model."""


@dataclass(frozen=True, slots=True, eq=False)
class SoftLabels:
    """Predictions on proxy samples.

    Attributes:
        output: name of the output kind.
        classes: the C classes in the order of the last axis.
        samples: (N,) int64 ids of proxy samples, each once.
        values: (N, …, C) float32.
        temperature: at which the probabilities were taken.
        form: "probabilities" (soft labels in the narrow sense) or "logits" (raw outputs).
    """

    kind: ClassVar[str] = "soft-labels"

    output: str
    classes: Classes
    samples: NDArray[np.int64]
    values: NDArray[np.float32]
    temperature: float = 1.0
    form: Form = "probabilities"

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise KnowledgeError(
                f"classes {list(self.classes)[:10]}", "expected at least one, each once", reason=Reason.CLASSES
            )
        if self.samples.ndim != 1 or self.samples.dtype != np.int64:
            raise KnowledgeError(
                f"sample ids of shape {self.samples.shape} and type {self.samples.dtype}",
                "expected (N,) int64",
                reason=Reason.SAMPLES,
            )
        rising = bool((np.diff(self.samples) > 0).all())  # as nearly always; spares the sorting
        if not rising and len(np.unique(self.samples)) != len(self.samples):
            raise KnowledgeError("sample ids that repeat", "expected every proxy sample once", reason=Reason.SAMPLES)
        if self.samples.min(initial=0) < 0:
            raise KnowledgeError(f"sample id {self.samples.min()}", "expected ids >= 0", reason=Reason.SAMPLES)
        if self.values.dtype != np.float32:
            raise KnowledgeError(f"values of type {self.values.dtype}", "expected float32", reason=Reason.TYPE)
        wanted = (len(self.samples), len(self.classes))
        if self.values.ndim < 2 or (self.values.shape[0], self.values.shape[-1]) != wanted:
            raise KnowledgeError(
                f"values of shape {self.values.shape}", f"expected ({wanted[0]}, …, {wanted[1]})", reason=Reason.SHAPE
            )
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise KnowledgeError(f"temperature={self.temperature}", "expected > 0", reason=Reason.RANGE)
        if self.form not in get_args(Form):
            raise KnowledgeError(f"form '{self.form}'", f"expected {' or '.join(get_args(Form))}")
        if self.form == "probabilities":
            output_kind(self.output).check(torch.from_numpy(self.values))
        elif not np.isfinite(self.values).all():
            raise KnowledgeError("non-finite predictions", "expected finite numbers", reason=Reason.NOT_FINITE)
        elif self.values.size and np.abs(self.values).max() > LARGEST_LOGIT:
            raise KnowledgeError(
                f"a logit of {np.abs(self.values).max():.3g}",
                f"expected at most {LARGEST_LOGIT:g}",
                reason=Reason.RANGE,
            )

    def header(self) -> Header:
        """Everything but the arrays."""
        return {
            "output": self.output,
            "classes": list(self.classes),
            "temperature": float(self.temperature),
            "form": self.form,
        }

    def arrays(self) -> Arrays:
        """The arrays by name."""
        return {"samples": self.samples, "values": self.values}

    @classmethod
    def from_parts(cls, header: Header, arrays: Arrays) -> SoftLabels:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        classes = header.get("classes")
        form = header.get("form")
        if not isinstance(classes, list) or form not in get_args(Form):
            raise KnowledgeError(f"header {sorted(header)}", "expected output, classes, temperature and form")
        for name in ("samples", "values"):
            if name not in arrays:
                raise KnowledgeError(f"arrays {sorted(arrays)}", f"expected '{name}' among them")
        return cls(
            output=str(header.get("output")),
            classes=tuple(classes),
            samples=np.asarray(arrays["samples"]),
            values=np.asarray(arrays["values"]),
            temperature=_number(header.get("temperature")),
            form="logits" if form == "logits" else "probabilities",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The weights of a model.

    Attributes:
        model: name of the architecture.
        weights: name → array, as in torch's state_dict.
    """

    kind: ClassVar[str] = "parameters"

    model: str
    weights: Arrays

    def __post_init__(self) -> None:
        if not self.weights:
            raise KnowledgeError(f"no weights of '{self.model}'", "expected at least one array")
        for name, array in self.weights.items():
            if array.dtype.kind not in "fiu":
                raise KnowledgeError(
                    f"weight '{name}' of type {array.dtype}", "expected a number type", reason=Reason.TYPE
                )
            if not np.isfinite(array).all():
                raise KnowledgeError(f"non-finite weight '{name}'", "expected finite numbers", reason=Reason.NOT_FINITE)
            largest = float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 0.0
            if largest > LARGEST_PARAMETER:
                raise KnowledgeError(
                    f"weight '{name}' of {largest:.3g}",
                    f"expected at most {LARGEST_PARAMETER:g}",
                    reason=Reason.RANGE,
                )

    def layout(self) -> Layout:
        """Shape and type of each array."""
        return {name: (array.shape, str(array.dtype)) for name, array in self.weights.items()}

    def header(self) -> Header:
        """Everything but the arrays."""
        return {"model": self.model}

    def arrays(self) -> Arrays:
        """The arrays by name."""
        return self.weights

    @classmethod
    def from_parts(cls, header: Header, arrays: Arrays) -> Parameters:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        return cls(model=str(header.get("model")), weights=dict(arrays))


Knowledge = SoftLabels | Parameters
"""What one side tells the other about one task."""

KNOWLEDGE: dict[str, type[SoftLabels] | type[Parameters]] = {kind.kind: kind for kind in (SoftLabels, Parameters)}
"""Every kind of knowledge by name."""


def knowledge_from_parts(kind: str, header: Header, arrays: Arrays) -> Knowledge:
    """Knowledge of the named kind from its parts.

    Raises:
        KnowledgeError: if the kind is unknown or a part malformed.
    """
    if kind not in KNOWLEDGE:
        raise KnowledgeError(f"knowledge '{kind}'", f"expected {' or '.join(KNOWLEDGE)}")
    return KNOWLEDGE[kind].from_parts(header, arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What one client sends about one task in one round, after admission.

    Attributes:
        client: the client's name.
        examples: number of its private examples for the task (weight of a weighted mean).
        knowledge: what it knows.
    """

    client: str
    examples: int
    knowledge: Knowledge


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KnowledgeError(f"temperature={value!r}", "expected a number")
    return float(value)
