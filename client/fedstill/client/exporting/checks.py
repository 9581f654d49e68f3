"""Whether an exported model answers as the model did, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import UnsupportedError
from fedstill.common.outputs.dense import GEOMETRY

_DIFFERENCE = 1e-4
"""Of float models: largest difference of raw outputs, as a share of the largest output (of 1 at least)."""

_EQUAL = {"fp32": 0.99, "int8": 0.9}
"""Least share of equal decisions."""

_NEAR = 0.1
"""Of integer models: deviation from the outputs' own deviation, below which few decisions may be equal (an untrained
model's are all near ties)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near an exported model's raw outputs are to the model's.

    Attributes:
        samples: compared.
        largest: difference of two numbers.
        deviation: root of the mean squared difference, as a share of the outputs' own deviation.
        equal: share of equal decisions; None for numbers, where nothing is decided.
    """

    samples: int
    largest: float
    deviation: float
    equal: float | None


def compare(wanted: NDArray[np.float32], found: NDArray[np.float32], *, output: str) -> Agreement:
    """Compare raw outputs (N, …, C) of a kind.

    Raises:
        UnsupportedError: if the shapes differ, or a number is not finite.
    """
    if wanted.shape != found.shape or not np.isfinite(found).all():
        raise UnsupportedError(
            f"exported model with outputs of shape {found.shape}", f"expected finite numbers of shape {wanted.shape}"
        )
    difference = np.abs(wanted.astype(np.float64) - found)
    spread = float(wanted.std()) or 1.0
    one, other = decisions(wanted, output), decisions(found, output)
    equal = None if one is None or other is None else float((one == other).mean())
    return Agreement(len(wanted), float(difference.max()), float(np.sqrt((difference**2).mean())) / spread, equal)


def decisions(outputs: NDArray[np.float32], output: str) -> NDArray[Any] | None:
    """What raw outputs decide: classes at each place, or for each class whether it is there; None for numbers."""
    if output == "regression":
        return None
    if output == "multi-label":
        return outputs > 0
    if output == "dense":
        return outputs[..., : -len(GEOMETRY)] > 0
    classes: NDArray[Any] = outputs.argmax(-1)
    return classes


def check(agreement: Agreement, wanted: NDArray[np.float32], *, output: str, precision: str) -> None:
    """Refuse an exported model that answers otherwise than the model did.

    Raises:
        UnsupportedError: if it does.
    """
    equal = 1.0 if agreement.equal is None else agreement.equal
    if precision == "int8":
        sound = agreement.deviation <= _NEAR or (agreement.equal is not None and equal >= _EQUAL["int8"])
        rule = f"expected a deviation of {_NEAR} at most, or {_EQUAL['int8']:.0%} equal decisions"
    else:
        # What is written after a word depends on the word: one tie that falls otherwise changes all behind it.
        bound = _DIFFERENCE * max(1.0, float(np.abs(wanted).max()))
        sound = equal >= _EQUAL["fp32"] and (output == "sequence" or agreement.largest <= bound)
        rule = f"expected {bound:.1g} at most, and {_EQUAL['fp32']:.0%} equal decisions"
    if not sound:
        raise UnsupportedError(
            f"exported model that differs by {agreement.largest:.2g} (deviation {agreement.deviation:.2g}, "
            f"{equal:.1%} equal decisions) on {agreement.samples} samples",
            rule,
            "export it as float32" if precision == "int8" else "report it with the model's name",
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of a call, over many.

    Attributes:
        median, p95: half of the calls, and 95 in 100, took no longer.
    """

    median: float
    p95: float


def timed(call: Callable[[], object], *, calls: int = 100, most: float = 2.0) -> Latency:
    """Time a call, after a tenth as many that do not count.

    Args:
        call: what is timed.
        calls: how many.
        most: seconds after which it is left at what was timed, five calls at least.
    """
    for _ in range(max(1, calls // 10)):
        call()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < calls and (len(times) < 5 or time.perf_counter() - begun < most):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return Latency(statistics.median(times), float(np.quantile(times, 0.95)))
