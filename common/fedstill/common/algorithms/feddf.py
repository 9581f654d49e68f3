"""FedDF: the averaged model is improved on the server by distilling the ensemble of the clients' models.

Lin et al. 2020, https://arxiv.org/abs/2006.07242, algorithm 1 (homogeneous). With client weights θ_k and logits
z_k(x) = f(x; θ_k) on unlabelled sample x:

    initialise   θ ← Σ_k (n_k / n) θ_k
    distil       θ ← argmin KL( softmax((1/K) Σ_k z_k(x)) ‖ softmax(f(x; θ)) )          (AVGLOGITS)

Deviations: a fixed number of epochs instead of early stopping on a validation set, which needs labels that the server
does not have; the same optimiser as the clients (Adam 1e-3 by default, as in the paper, without cosine annealing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import mean_parameters
from fedstill.common.knowledge import Contribution, Knowledge, Parameters, SoftLabels
from fedstill.common.sides import Client, Server, parameters_of


@dataclass(frozen=True, slots=True)
class FedDF:
    """Weights up and down; the server distils the ensemble of the clients' models (one architecture).

    Attributes:
        distil_epochs: passes of the server over the proxy samples in one round.
    """

    name: ClassVar[str] = "feddf"
    paper: ClassVar[str] = "Lin et al. 2020, https://arxiv.org/abs/2006.07242"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT - {"sequence"}  # which has no mean
    exchange: ClassVar[str] = "parameters"
    homogeneous: ClassVar[bool] = True

    distil_epochs: int = 5

    def __post_init__(self) -> None:
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

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
        """Average the weights, then distil the mean logits of the clients' models into the average."""
        weights = [parameters_of(c.knowledge) for c in contributions]
        inputs = server.proxy.at(server.samples)
        total = torch.zeros(())
        for one in weights:
            server.load(one)
            total = total + server.predict(inputs).double()
        ensemble = server.spec.kind.soften((total / len(weights)).float(), 1.0)
        server.load(mean_parameters(weights, [c.examples for c in contributions]))
        teacher = SoftLabels(server.spec.output, server.spec.classes, server.samples, ensemble.numpy())
        server.distil(teacher, epochs=self.distil_epochs)
        return server.parameters()
