"""fedstill's own method: students that doubt what they have not seen, and a teacher that remembers.

In every round client k trains on its n_k private examples and on N public proxy samples at once. With q the last
consensus, u the doubt, C classes and z the student's raw output, it minimises the mean over both kinds of samples of

    private (x, y)    −ln softmax(z(x))_y
    public x          w KL((1 − u) q(x) + u / C  ‖  softmax(z(x))),    u = 1 − (r − 1) / R in round r of R,
                                                                       w = min(1, n_k / N)

and answers with p_k = softmax(z) on the proxy samples. The server takes the mean of all answers of all rounds and
hardens it so that every class keeps its share; in the end students learn from that alone, without doubt, on all samples
that were ever asked about:

    remember    p̄(x) = Σ_r Σ_k p_kr(x) / Σ_r K_r
    harden      q_c(x) ∝ b_c · p̄_c(x)^(1/T), with b such that Σ_x q_c(x) = Σ_x p̄_c(x) for every class c

Doubt: a student of few classes is as sure of a sample of a class that it never saw as of its own ones, and spoils the
mean. Even labels on public samples, which hold all classes, teach it to be sure where its own data speak and even
elsewhere (outlier exposure, Hendrycks et al. 2019, https://arxiv.org/abs/1812.04606, section 3, with the proxy set as
outliers): its answer then weighs itself. Doubt has to fade, since students are to learn from the consensus; but not at
once: a student that believes all of it tells it again, and the consensus hears nothing new. Both kinds of samples in
each batch keep it from forgetting the one over the other; w keeps many public samples from drowning few private ones.
Remembering is an ensemble over rounds (Laine & Aila 2017, https://arxiv.org/abs/1610.02242, section 3.2), in which
early answers are the independent ones.

Hardening: a mean of careful opinions is more careful than any of them; plain sharpening lets what is frequent grow.
Keeping the mean's shares is the distribution alignment of semi-supervised learning (Berthelot et al. 2020,
https://arxiv.org/abs/1911.09785, section 3.1), here towards the consensus' own shares, found by Newton's steps.

Other kinds of output than one class of several have no doubt and no memory: the client distils the hardened mean of the
last answers, then trains. Kinds without classes to share (numbers, heat maps, rankings, sequences) get the plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import doubted, hardened, mean_soft_labels, running_mean
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of

_DOUBTING = frozenset({"categorical"})
_TRAINED = "trained"


@dataclass(frozen=True, slots=True)
class Fedstill:
    """Students that doubt what they have not seen learn from a mean that remembers, hardened class by class.

    Attributes:
        temperature: T of the hardening; 1 leaves the mean as it is.
        distil_epochs: passes over the proxy samples in one round, for other outputs than one class of several.
        doubt: where u begins; 0 to believe from the start.
        memory: whether the mean is over all rounds.
    """

    name: ClassVar[str] = "fedstill"
    paper: ClassVar[str] = "none yet; after Hendrycks et al. 2019, https://arxiv.org/abs/1812.04606"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False
    weighs: ClassVar[frozenset[str]] = _DOUBTING

    temperature: float = 0.3
    distil_epochs: int = 2
    doubt: float = 1.0
    memory: bool = True

    def __post_init__(self) -> None:
        check.positive("consensus labels go as p^(1/temperature)", algorithm_temperature=self.temperature)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)
        check.between(0, 1, algorithm_doubt=self.doubt)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Train on private examples and on the doubted labels together; or distil the labels."""
        labels = soft_labels_of(received)
        if client.spec.output not in _DOUBTING:
            client.distil(labels, epochs=self.distil_epochs)
        elif client.round > client.rounds and client.trust == 1:
            # The private data have had their equal share of steps.
            client.distil(labels, epochs=client.training.epochs)
        else:
            client.train_among(doubted(labels, self._doubt(client)))
            client.memory[_TRAINED] = torch.tensor(client.round)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, unless `absorb` has, and answer on the proxy samples."""
        doubting = client.spec.output in _DOUBTING
        if doubting and client.memory.get(_TRAINED) == client.round:
            return client.soft_labels()
        if doubting and self.doubt:
            # Nobody has told it anything yet: there is nothing but doubt.
            client.train_among(doubted(client.soft_labels(), 1.0))
        else:
            client.train()
        return client.soft_labels()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """Mean of the answers, of all rounds, hardened; after the last round on all samples that it knows."""
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
        if self.memory and server.spec.output in _DOUBTING:
            mean = running_mean(
                server.memory,
                mean,
                len(contributions),
                space=server.spec.classes,
                size=len(server.proxy),
                whole=server.round >= server.rounds,
            )
        return hardened(mean, self.temperature)

    def _doubt(self, client: Client) -> float:
        return self.doubt * max(0.0, 1 - (client.round - 1) / client.rounds)
