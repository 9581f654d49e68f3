"""All data in one place: what a federation could reach if nobody had to keep anything private. Simulation only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.errors import UnsupportedError
from fedstill.common.knowledge import Contribution, Knowledge
from fedstill.common.sides import Client, Server


@dataclass(frozen=True, slots=True)
class Central:
    """One model trained on the union of all private data (the ceiling; simulation only)."""

    name: ClassVar[str] = "central"
    paper: ClassVar[str] = ""
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "data"
    homogeneous: ClassVar[bool] = False

    def start(self, server: Server) -> None:
        """Refuse to run where the data cannot be pooled.

        Raises:
            UnsupportedError: outside a simulation.
        """
        if server.pooled is None:
            raise UnsupportedError(
                "algorithm 'central'", "expected a simulation, which alone holds all data", "choose another algorithm"
            )

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Clients have no part in it."""

    def local(self, client: Client) -> None:
        """Clients have no part in it."""

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> None:
        """Train the server's model on the pooled data for as many epochs as the clients would train in a round."""
        if server.pooled is not None:
            server.train_on(server.pooled())
