"""FedAvg: clients train the global model, the server averages the weights. The baseline of federated learning.

McMahan et al. 2017, https://arxiv.org/abs/1602.05629, algorithm 1:  θ ← Σ_k (n_k / n) θ_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import mean_parameters
from fedstill.common.knowledge import Contribution, Knowledge, Parameters
from fedstill.common.sides import Client, Server, parameters_of


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Weights up and down, averaged by number of examples (one architecture)."""

    name: ClassVar[str] = "fedavg"
    paper: ClassVar[str] = "McMahan et al. 2017, https://arxiv.org/abs/1602.05629"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "parameters"
    homogeneous: ClassVar[bool] = True

    def start(self, server: Server) -> Parameters:
        """The first global model."""
        return server.parameters()

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Replace the student by the global model."""
        client.load(parameters_of(received))

    def local(self, client: Client) -> Parameters:
        """Train on private data and answer with the weights."""
        client.train()
        return client.parameters()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Parameters:
        """Weighted mean of the weights, which becomes the server's model."""
        mean = mean_parameters([parameters_of(c.knowledge) for c in contributions], [c.examples for c in contributions])
        server.load(mean)
        return mean
