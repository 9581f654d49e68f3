"""Knowledge: what the sides tell each other about a task, as frozen values that refuse to be malformed.

`SoftLabels` are predictions on proxy samples, `Parameters` the weights of a model. `Relations` and `Features` say how
proxy samples lie to each other and nothing of classes: tasks whose label spaces do not meet can exchange them.
`Prototypes` are means over a class's private examples, `Embeddings` are about each of them; both need no proxy samples.
Each kind turns into a header of plain values and a mapping of arrays, and back: that is all that the wire and the
checkpoints know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.common.embeddings import Embeddings
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge_checks import check_classes, check_samples, check_size
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

LARGEST_FEATURE = 1e4
"""A feature above this comes from a diverged model; it also fits into half precision."""

WIDEST_FEATURES = 4096
"""Features of one sample."""

MOST_RELATED = 4096
"""Proxy samples in one matrix of relations, whose size is their square: 64 MiB."""

_BESIDE = "beside."

MOST_BEHIND = 1e9
"""Examples behind one prototype."""


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
        score: how well the sender's model did on examples of its own that it was not trained on, from 0 to 1; 1 where
            nobody asks. It is the sender's word.
    """

    kind: ClassVar[str] = "soft-labels"

    output: str
    classes: Classes
    samples: NDArray[np.int64]
    values: NDArray[np.float32]
    temperature: float = 1.0
    form: Form = "probabilities"
    score: float = 1.0

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_samples(self.samples, self.values)
        wanted = (len(self.samples), len(self.classes))
        if self.values.ndim < 2 or (self.values.shape[0], self.values.shape[-1]) != wanted:
            raise KnowledgeError(
                f"values of shape {self.values.shape}", f"expected ({wanted[0]}, …, {wanted[1]})", reason=Reason.SHAPE
            )
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise KnowledgeError(f"temperature={self.temperature}", "expected > 0", reason=Reason.RANGE)
        if not 0 <= self.score <= 1:
            raise KnowledgeError(f"score={self.score}", "expected 0 to 1", reason=Reason.RANGE)
        if self.form not in get_args(Form):
            raise KnowledgeError(f"form '{self.form}'", f"expected {' or '.join(get_args(Form))}")
        if self.form == "probabilities":
            output_kind(self.output).check(torch.from_numpy(self.values))
        else:
            check_size("logit", self.values, LARGEST_LOGIT)

    def header(self) -> Header:
        """Everything but the arrays."""
        told: Header = {
            "output": self.output,
            "classes": list(self.classes),
            "temperature": float(self.temperature),
            "form": self.form,
        }
        return told if self.score == 1 else told | {"score": float(self.score)}

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
        samples, values = _samples_and_values(arrays)
        return cls(
            output=str(header.get("output")),
            classes=tuple(classes),
            samples=samples,
            values=values,
            temperature=_number("temperature", header.get("temperature")),
            form="logits" if form == "logits" else "probabilities",
            score=_number("score", header.get("score", 1.0)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Relations:
    """How far proxy samples lie apart in a model's features, whatever these are.

    Park et al. 2019 (https://arxiv.org/abs/1904.05068), the distances ψ_D of equation 4.

    Attributes:
        samples: (N,) int64 ids of proxy samples, each once.
        values: (N, N) float32 >= 0, symmetric: distances over their mean, which is 1 over the pairs of two samples; all
            0 for a model that tells no sample from another.
    """

    kind: ClassVar[str] = "relations"

    samples: NDArray[np.int64]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_samples(self.samples, self.values)
        count = len(self.samples)
        if self.values.shape != (count, count) or count > MOST_RELATED:
            raise KnowledgeError(
                f"relations of shape {self.values.shape} between {count} samples",
                f"expected (N, N) for at most {MOST_RELATED}",
                "lower proxy.per-round",
                reason=Reason.SHAPE,
            )
        # A triangle with one long side has two: no distance is above N / 2 where their mean is 1.
        check_size("relation", self.values, max(count, 1))
        if (self.values < 0).any() or self.values.diagonal().any() or not np.array_equal(self.values, self.values.T):
            raise KnowledgeError(
                "relations that are no distances",
                "expected a symmetric matrix of numbers >= 0, with 0 on the diagonal",
                reason=Reason.RANGE,
            )
        mean = self.values.sum(dtype=np.float64) / max(count * (count - 1), 1)
        if self.values.any() and abs(mean - 1) > 0.01:
            raise KnowledgeError(f"relations with a mean of {mean:.3g}", "expected 1", reason=Reason.RANGE)

    def header(self) -> Header:
        """Everything but the arrays: nothing."""
        return {}

    def arrays(self) -> Arrays:
        """The arrays by name."""
        return {"samples": self.samples, "values": self.values}

    @classmethod
    def from_parts(cls, header: Header, arrays: Arrays) -> Relations:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        return cls(*_samples_and_values(arrays))


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """A model's features of proxy samples, or those of a space that several models share.

    Attributes:
        samples: (N,) int64 ids of proxy samples, each once.
        values: (N, D) float32.
    """

    kind: ClassVar[str] = "features"

    samples: NDArray[np.int64]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_samples(self.samples, self.values)
        shape = self.values.shape
        if len(shape) != 2 or shape[0] != len(self.samples) or not 1 <= shape[1] <= WIDEST_FEATURES:
            raise KnowledgeError(
                f"features of shape {shape}",
                f"expected ({len(self.samples)}, D) with D from 1 to {WIDEST_FEATURES}",
                reason=Reason.SHAPE,
            )
        check_size("feature", self.values, LARGEST_FEATURE)

    def header(self) -> Header:
        """Everything but the arrays: nothing."""
        return {}

    def arrays(self) -> Arrays:
        """The arrays by name."""
        return {"samples": self.samples, "values": self.values}

    @classmethod
    def from_parts(cls, header: Header, arrays: Arrays) -> Features:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        return cls(*_samples_and_values(arrays))


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """What a model makes of the examples of each class: means, and how much stands behind them.

    Attributes:
        classes: the C classes that there are examples of, in the order of the rows.
        counts: (C,) int64 >= 1: how many examples (or clients, if each has one voice) are behind each row.
        features: (C, D) float32 mean features; D = 0 for none.
        predictions: (C, L) float32 mean probabilities; L = 0 for none.
        columns: the L classes in the order of the columns of `predictions`.
        round: of the answers.
    """

    kind: ClassVar[str] = "prototypes"

    classes: Classes
    counts: NDArray[np.int64]
    features: NDArray[np.float32]
    predictions: NDArray[np.float32]
    columns: Classes = ()
    round: int = 0

    def __post_init__(self) -> None:
        check_classes(self.classes)
        if self.columns:
            check_classes(self.columns)
        rows = len(self.classes)
        shapes = (self.counts.shape, self.features.shape[:-1], self.predictions.shape)
        if shapes != ((rows,), (rows,), (rows, len(self.columns))) or self.features.shape[-1] > WIDEST_FEATURES:
            raise KnowledgeError(
                f"counts, features and predictions of shapes {self.counts.shape}, {self.features.shape} and "
                f"{self.predictions.shape}",
                f"expected ({rows},), ({rows}, D) with D up to {WIDEST_FEATURES}, and ({rows}, {len(self.columns)})",
                reason=Reason.SHAPE,
            )
        if not self.features.shape[-1] and not self.columns:
            raise KnowledgeError("prototypes of nothing", "expected features or predictions", reason=Reason.SHAPE)
        types = [str(array.dtype) for array in (self.counts, self.features, self.predictions)]
        if types != ["int64", "float32", "float32"]:
            raise KnowledgeError(
                "counts, features and predictions of types {}, {} and {}".format(*types),
                "expected int64, float32 and float32",
                reason=Reason.TYPE,
            )
        if self.counts.min() < 1 or self.counts.max() > MOST_BEHIND:
            raise KnowledgeError(
                f"counts from {self.counts.min()} to {self.counts.max()}",
                f"expected 1 to {MOST_BEHIND:g}",
                reason=Reason.RANGE,
            )
        check_size("feature", self.features, LARGEST_FEATURE)
        if self.columns:
            output_kind("categorical").check(torch.from_numpy(self.predictions))

    def header(self) -> Header:
        """Everything but the arrays."""
        return {"classes": list(self.classes), "columns": list(self.columns), "round": self.round}

    def arrays(self) -> Arrays:
        """The arrays by name, without those that have no columns."""
        found: Arrays = {"counts": self.counts, "features": self.features, "predictions": self.predictions}
        return {name: array for name, array in found.items() if array.size}

    @classmethod
    def from_parts(cls, header: Header, arrays: Arrays) -> Prototypes:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        classes, columns, number = (header.get(name) for name in ("classes", "columns", "round"))
        if not isinstance(classes, list) or not isinstance(columns, list) or not isinstance(number, int):
            raise KnowledgeError(f"header {sorted(header)}", "expected classes, columns and round")
        if "counts" not in arrays:
            raise KnowledgeError(f"arrays {sorted(arrays)}", "expected 'counts' among them")
        none = np.zeros((len(classes), 0), dtype=np.float32)
        features, predictions = arrays.get("features", none), arrays.get("predictions", none)
        if not features.ndim:
            raise KnowledgeError("features of shape ()", "expected a row for each class", reason=Reason.SHAPE)
        # The constructor compares the types, which nobody has seen yet.
        return cls(
            classes=tuple(classes),
            counts=cast("NDArray[np.int64]", arrays["counts"]),
            features=cast("NDArray[np.float32]", features),
            predictions=cast("NDArray[np.float32]", predictions),
            columns=tuple(columns),
            round=number,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The weights of a model.

    Attributes:
        model: name of the architecture.
        weights: name → array, as in torch's state_dict.
        beside: what else a method sends with them, by name; `Algorithm` says how.
    """

    kind: ClassVar[str] = "parameters"

    model: str
    weights: Arrays
    beside: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights:
            raise KnowledgeError(f"no weights of '{self.model}'", "expected at least one array")
        for name, array in self.arrays().items():
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
        """Shape and type of each array of weights."""
        return _layout(self.weights)

    def beside_layout(self) -> Layout:
        """Shape and type of each array beside the weights."""
        return _layout(self.beside)

    def header(self) -> Header:
        """Everything but the arrays."""
        return {"model": self.model}

    def arrays(self) -> Arrays:
        """The arrays by name; "beside." stands before the names of what is no weight."""
        return {**self.weights, **{_BESIDE + name: array for name, array in self.beside.items()}}

    @classmethod
    def from_parts(cls, header: Header, arrays: Arrays) -> Parameters:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        beside = {name.removeprefix(_BESIDE): array for name, array in arrays.items() if name.startswith(_BESIDE)}
        weights = {name: array for name, array in arrays.items() if not name.startswith(_BESIDE)}
        return cls(model=str(header.get("model")), weights=weights, beside=beside)


AboutSamples = SoftLabels | Relations | Features
"""Knowledge whose row i is about proxy sample `samples[i]`."""

Knowledge = AboutSamples | Prototypes | Embeddings | Parameters
"""What one side tells the other about one task."""

KNOWLEDGE: dict[str, type[Knowledge]] = {
    kind.kind: kind for kind in (SoftLabels, Relations, Features, Prototypes, Embeddings, Parameters)
}
"""Every kind of knowledge by name."""

ABOUT_SAMPLES = frozenset(kind.kind for kind in (SoftLabels, Relations, Features))
"""The kinds whose row i is about proxy sample i."""

PRIVATE = frozenset({Embeddings.kind})
"""The kinds that say something of each private example: a client lets them out only if its owner says so."""

LABEL_FREE = frozenset({Relations.kind, Features.kind})
"""The kinds that say something of samples and nothing of classes."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Personal:
    """What goes back where it differs from client to client.

    Attributes:
        common: what is measured, and told to everybody without knowledge of their own; None for nothing.
        own: by client, as contributions name them; of "client/task", another task's, nothing is used.
    """

    common: Knowledge | None
    own: Mapping[str, Knowledge]


def _layout(arrays: Arrays) -> Layout:
    return {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}


def _samples_and_values(arrays: Arrays) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    for name in ("samples", "values"):
        if name not in arrays:
            raise KnowledgeError(f"arrays {sorted(arrays)}", f"expected '{name}' among them")
    # The constructor compares the types, which nobody has seen yet.
    return cast("NDArray[np.int64]", arrays["samples"]), cast("NDArray[np.float32]", arrays["values"])


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KnowledgeError(f"{name}={value!r}", "expected a number")
    return float(value)
