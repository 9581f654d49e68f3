"""FedAUX: as FedDF, from pre-trained features, and with an ensemble in which a client counts where it is certain.

Sattler et al. 2021, https://arxiv.org/abs/2102.02514. The proxy samples are the auxiliary data: every fifth is a
negative D⁻, the others are distilled. With h_0 the features of the first model, and h̃ = h_0 / ‖h_0‖:

    start    θ ← contrastive pre-training of the body on the auxiliary data (SimCLR)
    score    w_k = argmin (1/n) Σ ln(1 + exp(−t ⟨w, h̃⟩)) + (λ/2) ‖w‖² + noise,
             with t = 1 on D_k and −1 on D⁻, and n = |D_k| + |D⁻|
             s_k(x) = 1 / (1 + exp(−⟨w_k, h̃(x)⟩)), (ε, δ)-private for each of D_k: see `certainty`
    local    θ_k ← θ, trained on the private data
    merge    θ ← Σ_k (n_k / n) θ_k
             θ ← argmin KL( softmax(Σ_k s_k(x) z_k(x) / Σ_k s_k(x)) ‖ softmax(z(x; θ)) )

A client makes its scores once, for all proxy samples, and keeps them. Only they are private; the weights are not.

Deviations: the features are those of the model that a client is told in the first round it takes part in, which is
the pre-trained one for those of round 1; each h̃ has length 1, where the paper divides all by the largest length, which
depends on private data; noise by the analytic Gaussian mechanism, drawn from the run's seed, which the server knows;
negatives are a fixed fifth; fixed numbers of epochs. Where a modality has no random views there is no pre-training. A
client that lost its memory scores once more, which costs another ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.certainty import private_scorer, scores
from fedstill.common.contrastive import pretrain
from fedstill.common.ensemble import mean_parameters
from fedstill.common.errors import ConfigError, KnowledgeError
from fedstill.common.knowledge import Contribution, Knowledge, Layout, Parameters, SoftLabels
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Client, Server, parameters_of

_KEPT, _SCORES = "fedaux.scores", "scores"
_PARTS = 5
_LEAST = 1e-8
"""Added to scores: a sample that nobody is certain of gets the plain mean."""


@dataclass(frozen=True, slots=True)
class FedAUX:
    """As FedDF, from pre-trained features, and with an ensemble in which a client counts where it is certain.

    Attributes:
        epsilon: ε of the scores' privacy; the smaller, the more noise.
        delta: δ of it.
        ridge: λ of the regression that scores; the larger, the less noise, and the less it tells.
        pretrain_epochs: passes of the server over the proxy set before the first round.
        distil_epochs: passes of the server over the distilled samples in one round.
    """

    name: ClassVar[str] = "fedaux"
    paper: ClassVar[str] = "Sattler et al. 2021, https://arxiv.org/abs/2102.02514"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT - {"sequence"}  # which has no mean
    exchange: ClassVar[str] = "parameters"
    homogeneous: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True

    epsilon: float = 0.1
    delta: float = 1e-5
    ridge: float = 0.01
    pretrain_epochs: int = 10
    distil_epochs: int = 5

    def __post_init__(self) -> None:
        check.positive(algorithm_epsilon=self.epsilon, algorithm_delta=self.delta, algorithm_ridge=self.ridge)
        check.at_least(1, algorithm_pretrain_epochs=self.pretrain_epochs, algorithm_distil_epochs=self.distil_epochs)
        if self.epsilon > 100 or self.delta >= 1:
            raise ConfigError(
                f"algorithm_epsilon={self.epsilon}, algorithm_delta={self.delta}",
                "expected epsilon <= 100 and delta < 1",
                "beyond that there is no privacy to speak of: see fedavg and feddf",
            )

    def beside(self, samples: int) -> Layout:
        """What travels beside the weights: a score for each of the round's samples."""
        return {_SCORES: ((samples,), "float32")}

    def start(self, server: Server) -> Parameters:
        """The first global model, whose body has learnt from the proxy set."""
        pretrain(server, epochs=self.pretrain_epochs)
        return server.parameters()

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Replace the student by the global model."""
        client.load(parameters_of(received))

    def local(self, client: Client) -> Parameters:
        """Score the proxy samples, train on private data, and answer with weights and scores."""
        if _KEPT not in client.memory:
            client.memory[_KEPT] = self._scores(client)
        client.train()
        told = client.memory[_KEPT].numpy()[client.samples]
        return replace(client.parameters(), beside={_SCORES: told})

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Parameters:
        """Average the weights, then distil the certainty-weighted ensemble of the clients' models into the average."""
        told = [parameters_of(c.knowledge) for c in contributions]
        rows = np.flatnonzero(server.samples % _PARTS)
        teacher = _ensemble(server, told, rows)
        server.load(mean_parameters(told, [c.examples for c in contributions]))
        if len(rows):
            server.distil(teacher, epochs=self.distil_epochs)
        return server.parameters()

    def _scores(self, client: Client) -> Tensor:
        """Of every proxy sample, (P,) float32."""
        everything = np.arange(len(client.proxy), dtype=np.int64)
        public = client.features(everything)
        scorer = private_scorer(
            client.private_features(),
            public[::_PARTS],
            ridge=self.ridge,
            epsilon=self.epsilon,
            delta=self.delta,
            chance=torch_rng(client.seed, "scores"),
        )
        return scores(scorer, public)


def _ensemble(server: Server, told: Sequence[Parameters], rows: NDArray[np.int64]) -> SoftLabels:
    """Soft labels of those of the round's samples; the server's model is another one afterwards."""
    samples = server.samples[rows]
    inputs = server.proxy.at(samples)
    total, weight = torch.zeros(()), torch.zeros(())
    for one in told:
        if _SCORES not in one.beside:
            raise KnowledgeError(f"weights beside {sorted(one.beside)}", f"expected '{_SCORES}'")
        server.load(one)
        raw = server.predict(inputs).double()
        share = torch.from_numpy(one.beside[_SCORES][rows].astype(np.float64)).clamp(0, 1) + _LEAST
        share = share.reshape(-1, *[1] * (raw.dim() - 1))
        total, weight = total + share * raw, weight + share
    kind = server.spec.kind
    soft = kind.blank(kind.soften((total / weight).float(), 1.0), inputs)
    return SoftLabels(server.spec.output, server.spec.classes, samples, soft.numpy())
