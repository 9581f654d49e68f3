"""Where our log is shown: a library that says nothing by itself, and a Flower process in which it is Flower's."""

from __future__ import annotations

import logging


def show_where_flower_does(level: str = "info") -> None:
    """Show our log where Flower shows its own: `flwr run --stream`, `flwr log`, a SuperNode's output.

    Args:
        level: the least that is shown: "debug", "info", "warning" or "error".
    """
    ours = logging.getLogger("fedstill")
    ours.setLevel(level.upper())
    for handler in logging.getLogger("flwr").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
