"""Embeddings: what models make of a client's private examples, one by one. No other knowledge says as much of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge_checks import check_classes, check_size
from fedstill.common.labels import Classes

if TYPE_CHECKING:
    from fedstill.common.knowledge import Header

WIDEST_EMBEDDING = 4096
"""Features of one example."""

LARGEST_EMBEDDING = 1e4
"""A feature or raw output above this comes from a diverged model; it also fits into half precision."""

MOST_EXAMPLES = 2**20
"""Private examples of one client in one message."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What is known of each of a client's private examples, in the client's order.

    Attributes:
        classes: the C classes in the order of the columns of `logits`.
        logits: (N, C) float32 raw outputs.
        features: (N, D) float32, what the last layer of the client's model reads; D = 0 for none.
        labels: (N,) int64 positions of the true classes; (0,) for none.
        round: of the client's answer.
    """

    kind: ClassVar[str] = "embeddings"

    classes: Classes
    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    round: int = 0

    def __post_init__(self) -> None:
        check_classes(self.classes)
        count, width = len(self.logits), len(self.classes)
        shapes = (self.logits.shape, self.features.shape[:-1], self.labels.shape)
        if (
            not 1 <= count <= MOST_EXAMPLES
            or self.features.ndim != 2
            or self.features.shape[-1] > WIDEST_EMBEDDING
            or shapes[:2] != ((count, width), (count,))
            or self.labels.shape not in {(count,), (0,)}
        ):
            raise KnowledgeError(
                f"logits, features and labels of shapes {self.logits.shape}, {self.features.shape} and "
                f"{self.labels.shape}",
                f"expected (N, {width}), (N, D) and (N,), or no labels, with N from 1 to {MOST_EXAMPLES} and D up to "
                f"{WIDEST_EMBEDDING}",
                reason=Reason.SHAPE,
            )
        types = [str(array.dtype) for array in (self.logits, self.features, self.labels)]
        if types != ["float32", "float32", "int64"]:
            raise KnowledgeError(
                "logits, features and labels of types {}, {} and {}".format(*types),
                "expected float32, float32 and int64",
                reason=Reason.TYPE,
            )
        check_size("feature", self.features, LARGEST_EMBEDDING)
        check_size("logit", self.logits, LARGEST_EMBEDDING)
        if self.labels.size and (self.labels.min() < 0 or self.labels.max() >= width):
            raise KnowledgeError(
                f"labels from {self.labels.min()} to {self.labels.max()}",
                f"expected positions among {width} classes",
                reason=Reason.RANGE,
            )

    def header(self) -> Header:
        """Everything but the arrays."""
        return {"classes": list(self.classes), "round": self.round}

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """The arrays by name, without those that are empty; labels in as few bytes as they need."""
        labels = self.labels.astype(np.min_scalar_type(len(self.classes)))
        found: dict[str, NDArray[np.generic]] = {"logits": self.logits, "features": self.features, "labels": labels}
        return {name: array for name, array in found.items() if array.size}

    @classmethod
    def from_parts(cls, header: Header, arrays: Mapping[str, NDArray[np.generic]]) -> Embeddings:
        """The inverse of `header` and `arrays`.

        Raises:
            KnowledgeError: if a part is missing or malformed.
        """
        classes, number = header.get("classes"), header.get("round")
        if not isinstance(classes, list) or isinstance(number, bool) or not isinstance(number, int):
            raise KnowledgeError(f"header {sorted(header)}", "expected classes and round")
        logits = arrays.get("logits")
        if logits is None or not logits.ndim:
            raise KnowledgeError(f"arrays {sorted(arrays)}", "expected 'logits' with a row for each example among them")
        features = arrays.get("features", np.zeros((len(logits), 0), np.float32))
        labels = arrays.get("labels", np.zeros(0, np.int64))
        if labels.dtype.kind not in "iu":
            raise KnowledgeError(f"labels of type {labels.dtype}", "expected integers", reason=Reason.TYPE)
        if not features.ndim:
            raise KnowledgeError("features of shape ()", "expected a row for each example", reason=Reason.SHAPE)
        return cls(
            classes=tuple(classes),
            # The constructor compares the types, which nobody has seen yet.
            logits=cast("NDArray[np.float32]", logits),
            features=cast("NDArray[np.float32]", features),
            labels=labels.astype(np.int64),
            round=number,
        )
