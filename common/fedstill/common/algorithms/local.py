"""Every client for itself: no exchange. The floor that a federation has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.knowledge import Contribution, Knowledge
from fedstill.common.sides import Client, Server


@dataclass(frozen=True, slots=True)
class Local:
    """Every client trains alone; nothing is exchanged (the floor)."""

    name: ClassVar[str] = "local"
    paper: ClassVar[str] = ""
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "nothing"
    homogeneous: ClassVar[bool] = False

    def start(self, server: Server) -> None:
        """Nothing to tell."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Nothing to take in."""

    def local(self, client: Client) -> None:
        """Train on private data and keep the result."""
        client.train()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> None:
        """Nothing to merge."""
