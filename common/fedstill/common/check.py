"""Checks of single values, with one form of message: the value, the rule, the cure."""

from __future__ import annotations

import math
from collections.abc import Collection

from fedstill.common.errors import ConfigError


def positive(cure: str = "", /, **values: float) -> None:
    """Refuse every value that is not a finite number above 0.

    Raises:
        ConfigError: naming the first such value.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value}", "expected > 0", cure)


def at_least(minimum: float, cure: str = "", /, **values: float) -> None:
    """Refuse every value below `minimum`, and NaN.

    Raises:
        ConfigError: naming the first such value.
    """
    for name, value in values.items():
        if not value >= minimum:
            raise ConfigError(f"{name}={value}", f"expected >= {minimum}", cure)


def fraction(cure: str = "", /, **values: float) -> None:
    """Refuse every value outside (0, 1].

    Raises:
        ConfigError: naming the first such value.
    """
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ConfigError(f"{name}={value}", "expected 0 < value <= 1", cure)


def between(low: float, high: float, cure: str = "", /, **values: float) -> None:
    """Refuse every value outside [low, high], and NaN.

    Raises:
        ConfigError: naming the first such value.
    """
    for name, value in values.items():
        if not low <= value <= high:
            raise ConfigError(f"{name}={value}", f"expected {low} <= value <= {high}", cure)


def one_of(choices: Collection[str], cure: str = "", /, **values: str) -> None:
    """Refuse every value that is not among `choices`.

    Raises:
        ConfigError: naming the first such value.
    """
    for name, value in values.items():
        if value not in choices:
            raise ConfigError(f"{name}={value!r}", f"expected one of {', '.join(choices)}", cure)
