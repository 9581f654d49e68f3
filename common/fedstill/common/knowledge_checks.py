"""What every kind of knowledge is checked for: names of classes, ids of samples, sizes of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.labels import Classes


def check_classes(classes: Classes) -> None:
    """Refuse class names that are none, or repeat."""
    if not classes or len(set(classes)) != len(classes):
        raise KnowledgeError(f"classes {list(classes)[:10]}", "expected at least one, each once", reason=Reason.CLASSES)


def check_samples(samples: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Refuse ids of proxy samples (N,) that repeat or are negative, and values of another type than float32."""
    if samples.ndim != 1 or samples.dtype != np.int64:
        raise KnowledgeError(
            f"sample ids of shape {samples.shape} and type {samples.dtype}",
            "expected (N,) int64",
            reason=Reason.SAMPLES,
        )
    rising = bool((np.diff(samples) > 0).all())  # as nearly always; spares the sorting
    if not rising and len(np.unique(samples)) != len(samples):
        raise KnowledgeError("sample ids that repeat", "expected every proxy sample once", reason=Reason.SAMPLES)
    if samples.min(initial=0) < 0:
        raise KnowledgeError(f"sample id {samples.min()}", "expected ids >= 0", reason=Reason.SAMPLES)
    if values.dtype != np.float32:
        raise KnowledgeError(f"values of type {values.dtype}", "expected float32", reason=Reason.TYPE)


def check_size(what: str, values: NDArray[np.float32], largest: float) -> None:
    """Refuse numbers that are not finite, or larger than the largest, either way."""
    if not np.isfinite(values).all():
        raise KnowledgeError(f"a non-finite {what}", "expected finite numbers", reason=Reason.NOT_FINITE)
    found = np.abs(values).max(initial=0)
    if found > largest:
        raise KnowledgeError(f"a {what} of {found:.3g}", f"expected at most {largest:g}", reason=Reason.RANGE)
