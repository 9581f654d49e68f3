"""Fed-ET: small models of several kinds teach a large one on the server, each where it is sure; its head goes back.

Cho et al. 2022, https://arxiv.org/abs/2204.12703. Clients have small models of U architectures, all with a last layer h
of one width, as the server's large model has. With client k's scores z_k(x) on proxy sample x, and Var over classes:

    weights    α_k(x) = Var(z_k(x)) / Σ_j Var(z_j(x)),   y(x) = argmax_c Σ_k α_k(x) z_kc(x)
    diversity  d(x) = softmax(Σ_k α'_k(x) z_k(x)), α' the same weights over those clients alone whose class is not y(x)
    merge      server's h ← mean of the clients' h
               θ ← argmin CE(y(x), p(x; θ)) + λ · KL( d(x) ‖ p(x; θ) ) on the proxy samples
               small model u ← mean of the clients' models of architecture u, with the server's h
    absorb     student ← the small model of its architecture
    local      student ← private data

A confident model's scores are far apart: a high variance. Weights travel; the proxy samples are the server's.

Deviations: fixed numbers of epochs; where all agree with y(x) there is no diversity term; the means give every client
of an architecture the same weight. Written after the paper's abstract and public descriptions of its formulas.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedstill.common import check
from fedstill.common.ensemble import mean_parameters
from fedstill.common.errors import UnsupportedError
from fedstill.common.knowledge import Contribution, Knowledge, Parameters, Personal
from fedstill.common.learning import predict
from fedstill.common.models import build_model, embedding_width
from fedstill.common.network import last_layer
from fedstill.common.seeding import derive
from fedstill.common.sides import Client, ClientInfo, Server, parameters_of
from fedstill.common.task import TaskSpec

_POOL = "fedet."
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class FedET:
    """Small models of several kinds teach a large one on the server, each where it is sure; its head goes back.

    Attributes:
        diversity: λ of the opinions that differ from the consensus.
        distil_epochs: passes of the server over the proxy samples in one round.
    """

    name: ClassVar[str] = "fedet"
    paper: ClassVar[str] = "Cho et al. 2022, https://arxiv.org/abs/2204.12703"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "parameters"
    homogeneous: ClassVar[bool] = False
    own_weights: ClassVar[bool] = True

    diversity: float = 0.05
    distil_epochs: int = 5

    def __post_init__(self) -> None:
        check.positive(algorithm_diversity=self.diversity)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)

    def check_clients(self, spec: TaskSpec, model: str, clients: Collection[ClientInfo]) -> None:
        """Refuse models whose last layers cannot be exchanged.

        Raises:
            UnsupportedError: naming the widths.
        """
        names = sorted({model, *(client.model for client in clients)})
        widths = {name: embedding_width(name, spec) for name in names}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} ({width})" for name, width in widths.items())
            raise UnsupportedError(
                f"algorithm '{self.name}' with models {listed} for task '{spec.name}'",
                "expected last layers that read as many features on clients and server, because they are exchanged",
                "choose such models, as mlp-small and resnet-8 are for images, or a method that sends predictions",
            )

    def start(self, server: Server) -> Personal:
        """A first small model of each architecture, the same for all clients that have it."""
        for name in sorted({client.model for client in server.clients}):
            model = build_model(name, server.spec, seed=derive(server.seed, "small", name))
            _keep(server, name, model.state_dict())
        return _told(server)

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Replace the student by the small model of its architecture."""
        client.load(parameters_of(received))

    def local(self, client: Client) -> Parameters:
        """Train on private data and answer with the weights."""
        client.train()
        return client.parameters()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Personal:
        """Train the large model on the ensemble's labels; the small ones are averaged and get its head."""
        told = [parameters_of(c.knowledge) for c in contributions]
        models = [_rebuilt(server, one) for one in told]
        inputs = server.proxy.at(server.samples)
        scores = torch.stack([predict(model, inputs, training=server.training) for model in models])
        _join_heads(server, [last_layer(model, one.model) for model, one in zip(models, told, strict=True)])
        kind = server.spec.kind

        def loss(logits: Tensor, labels: Tensor, others: Tensor, weights: Tensor) -> Tensor:
            differing = (kind.divergence(logits, others, 1.0) * weights).mean()
            return cross_entropy(logits, labels) + self.diversity * differing

        server.fit(inputs, ensemble_labels(scores), loss, epochs=self.distil_epochs, purpose="distil")
        for name in sorted({one.model for one in told}):
            alike = [one for one in told if one.model == name]
            mean = mean_parameters(alike, [1.0] * len(alike))
            _keep(server, name, {key: torch.from_numpy(array) for key, array in mean.weights.items()})
        return _told(server)


def ensemble_labels(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What an ensemble says, and what those in it say who differ.

    Args:
        scores: (K, N, C) raw outputs of K models.

    Returns:
        The consensus' class y (N,); the differing models' soft labels d (N, C); and 1 where there are such, 0 else
        (N,).
    """
    sure = scores.var(-1, correction=0) + _LEAST
    labels = _weighted(scores, sure).argmax(-1)
    differing = (scores.argmax(-1) != labels).to(sure.dtype)
    others = torch.softmax(_weighted(scores, sure * differing), -1)
    return labels, others, differing.amax(0)


def _weighted(scores: Tensor, weights: Tensor) -> Tensor:
    """Mean of (K, N, C) scores with weights (K, N); 0 where all weights are."""
    total = weights.sum(0)
    shares = torch.where(total > 0, weights / total.clamp_min(torch.finfo(total.dtype).tiny), torch.zeros_like(weights))
    return (shares.unsqueeze(-1) * scores).sum(0)


def _rebuilt(server: Server, told: Parameters) -> nn.Module:
    model = build_model(told.model, server.spec, seed=0)
    model.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in told.weights.items()})
    return model


def _join_heads(server: Server, heads: Sequence[nn.Linear]) -> None:
    """The server's last layer becomes the mean of the clients'."""
    own = last_layer(server.model, server.model_name).state_dict()
    told = [head.state_dict() for head in heads]
    means = {key: torch.stack([one[key] for one in told]).double().mean(0) for key in own}
    last_layer(server.model, server.model_name).load_state_dict(means)


def _keep(server: Server, name: str, weights: Mapping[str, Tensor]) -> None:
    server.memory |= {f"{_POOL}{name}/{key}": value.clone() for key, value in weights.items()}


def _told(server: Server) -> Personal:
    """To each client the small model of its architecture, with the server's head."""
    head = last_layer(server.model, server.model_name).state_dict()
    small = {name: _small(server, name, head) for name in sorted({client.model for client in server.clients})}
    return Personal(server.parameters(), {client.name: small[client.model] for client in server.clients})


def _small(server: Server, name: str, head: Mapping[str, Tensor]) -> Parameters:
    prefix = f"{_POOL}{name}/"
    weights: dict[str, NDArray[np.generic]] = {
        key.removeprefix(prefix): value.numpy().copy() for key, value in server.memory.items() if key.startswith(prefix)
    }
    model = build_model(name, server.spec, seed=0)
    layer = last_layer(model, name)
    place = next(path for path, module in model.named_modules() if module is layer)
    return Parameters(name, weights | {f"{place}.{key}": value.numpy().copy() for key, value in head.items()})
