"""Plug-ins found by name: one file each in a package of ours, or an entry point of somebody else's.

A file `algorithms/fedmd.py` defines one class whose `name` is `fedmd`; nothing else has to be touched. A third party
declares an entry point in the group, such as `fedstill.algorithms`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from fedstill.common.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Registry:
    """The plug-ins of one kind.

    Attributes:
        kind: what they are, for messages ("algorithm").
        package: where ours lie, one file each.
        group: the entry-point group of everybody else's.
    """

    kind: str
    package: str
    group: str

    def names(self) -> tuple[str, ...]:
        """All names, sorted, without importing a single plug-in."""
        return tuple(sorted({*_own(self.package), *_foreign(self.group)}))

    def get(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            ConfigError: if there is none; the message names the nearest.
        """
        if name in _own(self.package):
            return _the_class(f"{self.package}.{_own(self.package)[name]}", name)
        if name in _foreign(self.group):
            found: type[Any] = _foreign(self.group)[name].load()
            return found
        raise ConfigError(f"{self.kind} '{name}'", f"expected a known {self.kind}", nearest(name, self.names()))

    def all(self) -> dict[str, type[Any]]:
        """Every class by name. Imports them all."""
        return {name: self.get(name) for name in self.names()}


@cache
def _own(package: str) -> dict[str, str]:
    path = importlib.import_module(package).__path__
    return {m.name.replace("_", "-"): m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")}


@cache
def _foreign(group: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=group)}


def _the_class(module_name: str, name: str) -> type[Any]:
    module = importlib.import_module(module_name)
    for _, found in inspect.getmembers(module, inspect.isclass):
        if found.__module__ == module.__name__ and getattr(found, "name", None) == name:
            return found
    raise ConfigError(f"{module_name}", f"expected a class with name = '{name}' in that file")


def first_line(plugin: object) -> str:
    """The sentence that `fedstill list` shows: the first line of the docstring."""
    return (inspect.getdoc(plugin) or "").split("\n")[0].rstrip(".")


ALGORITHMS = Registry("algorithm", "fedstill.common.algorithms", "fedstill.algorithms")
TASKS = Registry("task", "fedstill.common.tasks", "fedstill.tasks")
MODELS = Registry("model family", "fedstill.common.models", "fedstill.models")
CODECS = Registry("codec", "fedstill.common.codecs", "fedstill.codecs")
QUERIES = Registry("query strategy", "fedstill.common.queries", "fedstill.queries")
