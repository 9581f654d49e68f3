"""What there is to choose from, with a line and a paper each."""

from __future__ import annotations

import tomllib

from fedstill.common.registry import ALGORITHMS, CODECS, MODELS, QUERIES, TASKS, first_line
from fedstill.common.sources import named_scenarios
from fedstill.server.teacher import TEACHERS

_REGISTRIES = {
    "algorithms": ALGORITHMS,
    "tasks": TASKS,
    "teachers": TEACHERS,
    "codecs": CODECS,
    "queries": QUERIES,
}


def catalogue(kind: str) -> dict[str, dict[str, str]]:
    """Every entry of a kind, as name → {"what", "paper"}.

    Args:
        kind: "algorithms", "tasks", "models", "teachers", "codecs", "queries" or "scenarios".
    """
    if kind == "scenarios":
        return {name: {"what": tomllib.loads(text).get("description", "")} for name, text in named_scenarios().items()}
    if kind == "models":
        return {
            f"{name}-{size}": {"what": what, "paper": family.paper}
            for name, family in MODELS.all().items()
            for size, what in family.sizes.items()
        }
    return {
        name: {"what": first_line(plugin), "paper": getattr(plugin, "paper", "")}
        for name, plugin in _REGISTRIES[kind].all().items()
    }
