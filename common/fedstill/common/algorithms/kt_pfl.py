"""KT-pFL: every client learns from a mixture of all predictions of its own, and the server learns the mixtures.

Zhang et al. 2021, https://arxiv.org/abs/2111.02862, algorithm 1. With client k's probabilities p_k(x) at temperature T
on proxy sample x, and a matrix of coefficients c that begins with 1/K everywhere:

    objective    min over c of  Σ_k (n_k / n) · mean_x KL( Σ_l c_kl p_l(x) ‖ p_k(x) ) + ρ · ‖c − 1/K‖²
    merge        c ← c − η · gradient of the objective                          (the models stand still)
                 q_k(x) = Σ_l c_kl p_l(x)                                       (client k's own teacher)
    absorb       student k ← argmin T² · KL( q_k(x) ‖ p(x) ) on the proxy samples   (the coefficients stand still)
    local        student k ← private data

Who is like a client gets more say in what it learns. The server remembers c by the clients' names. A client that is
away keeps its row and column: the others' rows move among those who are there, and it still gets a mixture of their
answers.

Deviations: each row of c is brought back to the nearest one of numbers ≥ 0 with the sum that it had, where the authors'
code takes softmax(5 c); one step a round with a fixed η, where that code fits the step to the gradient; λ is 1; the
factor T². With other label spaces each class is mixed over those who know it, and the divergence is over client k's own
classes. T is 1, where the authors' settings have 10, at which all predictions look alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.ensemble import mean_soft_labels, stacked
from fedstill.common.knowledge import Contribution, Form, Knowledge, Personal, SoftLabels
from fedstill.common.labels import Classes, positions
from fedstill.common.outputs import output_kind
from fedstill.common.sides import Client, Memory, Server, soft_labels_of

_NAMES, _COEFFICIENTS = "kt-pfl.names", "kt-pfl.coefficients"

_LEAST = 1e-6
"""A coefficient below this counts as this: where all who know a class have none, their mean still has to be one."""

_LEAST_PROBABILITY = 1e-4
"""What stands for less where a logarithm is taken: a codec may have rounded it to 0."""


@dataclass(frozen=True, slots=True)
class KTpFL:
    """Each student learns from a mixture of everybody's predictions of its own, which the server learns.

    Attributes:
        temperature: T of the exchanged probabilities.
        distil_epochs: passes over the proxy samples in one round.
        penalty: ρ, how firmly the coefficients are held at 1/K.
        rate: η of the coefficients' step in one round.
    """

    name: ClassVar[str] = "kt-pfl"
    paper: ClassVar[str] = "Zhang et al. 2021, https://arxiv.org/abs/2111.02862"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical", "multi-label", "token-level"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    temperature: float = 1.0
    distil_epochs: int = 2
    penalty: float = 0.7
    rate: float = 0.5

    def __post_init__(self) -> None:
        check.positive("soft labels are softmax(z / temperature)", algorithm_temperature=self.temperature)
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)
        check.at_least(0, algorithm_penalty=self.penalty)
        check.positive(algorithm_rate=self.rate)

    @property
    def asked(self) -> tuple[Form, float]:
        """Form and temperature of the clients' answers."""
        return "probabilities", self.temperature

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the own mixture."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples."""
        client.train()
        return client.soft_labels(temperature=self.temperature)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Personal:
        """A step of the coefficients, then everybody's own mixture; the plain mean is what they have in common."""
        opinions = [soft_labels_of(one.knowledge) for one in contributions]
        space = server.spec.classes
        told = [one.client for one in contributions]
        names, matrix = recalled(server.memory, [*(client.name for client in server.clients), *told])
        rows = [names.index(name) for name in told]
        answered = np.ix_(rows, rows)
        matrix[answered] = improved(
            matrix[answered],
            opinions,
            [float(one.examples) for one in contributions],
            space=space,
            even=1 / len(names),
            penalty=self.penalty,
            rate=self.rate,
        )
        server.memory |= {_NAMES: _as_bytes(names), _COEFFICIENTS: matrix}
        shares = matrix[:, rows].clamp_min(_LEAST).tolist()
        own = {name: mean_soft_labels(opinions, row, space=space) for name, row in zip(names, shares, strict=True)}
        return Personal(mean_soft_labels(opinions, space=space), own)


def recalled(memory: Memory, clients: Sequence[str]) -> tuple[list[str], Tensor]:
    """Names and coefficients (K, K) float64 of everybody whom the server remembers, and of those who are new.

    A new client begins with 1/K in its row, and everybody gives it 1/K of their own.

    Args:
        memory: of the server.
        clients: names, new or not.
    """
    names: list[str] = json.loads(memory[_NAMES].numpy().tobytes()) if _NAMES in memory else []
    new = [name for name in dict.fromkeys(clients) if name not in names]
    before, count = len(names), len(names) + len(new)
    matrix = torch.full((count, count), 1 / count, dtype=torch.float64)
    if before:
        matrix[:before, :before] = memory[_COEFFICIENTS] * (before / count)
    return names + new, matrix


def improved(
    coefficients: Tensor,
    opinions: Sequence[SoftLabels],
    examples: Sequence[float],
    *,
    space: Classes,
    even: float,
    penalty: float,
    rate: float,
) -> Tensor:
    """The coefficients after one step down the objective; each row keeps its sum.

    Args:
        coefficients: (L, L) float64 of the L clients that answered.
        opinions: their L predictions.
        examples: their numbers of private examples.
        space: the task's label space.
        even: 1/K.
        penalty: ρ.
        rate: η.
    """
    _, classes, values, there = stacked(opinions, space=space)
    answers, known = torch.from_numpy(values).double(), torch.from_numpy(there).double()
    leaf = coefficients.clamp_min(_LEAST).requires_grad_()
    known = known.expand_as(answers)
    apart = [
        _divergence(leaf[row], answers, known, row=row, own=opinion, classes=classes)
        for row, opinion in enumerate(opinions)
    ]
    shares = torch.tensor(examples, dtype=torch.float64) / sum(examples)
    (gradient,) = torch.autograd.grad(shares @ torch.stack(apart), leaf)
    stepped = coefficients - rate * (gradient + 2 * penalty * (coefficients - even))
    return torch.stack([projected(*pair) for pair in zip(stepped, coefficients.sum(1).tolist(), strict=True)])


def projected(row: Tensor, total: float) -> Tensor:
    """The nearest row of numbers ≥ 0 with a given sum (Duchi et al. 2008, https://doi.org/10.1145/1390156.1390191).

    Args:
        row: (L,).
        total: ≥ 0.
    """
    falling = row.sort(descending=True).values
    excess = (falling.cumsum(0) - total) / torch.arange(1, len(row) + 1)
    last = int((falling > excess).sum().clamp_min(1)) - 1
    return (row - excess[last]).clamp_min(0)


def _divergence(
    weights: Tensor, answers: Tensor, known: Tensor, *, row: int, own: SoftLabels, classes: Classes
) -> Tensor:
    """Mean over a client's samples of KL(mixture ‖ its own answer), over its own classes.

    Args:
        weights: (L,) of the mixture.
        answers: (L, N, …, C) of everybody.
        known: the same shape; 1 where somebody has an answer, else 0.
        row: whose client it is.
        own: its answer.
        classes: the C of all.
    """
    kind, columns = output_kind(own.output), torch.from_numpy(positions(own.classes, classes))
    share = torch.tensordot(weights, known, 1)
    mixed = torch.tensordot(weights, answers, 1) / share.clamp_min(_LEAST)
    if kind.has_classes:
        mixed = mixed / mixed.sum(-1, keepdim=True).clamp_min(_LEAST)
    asked = known[row].flatten(1).any(-1)
    mixed, mass = kind.restrict(mixed[asked], columns)
    answer = answers[row][asked][..., columns].clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    if kind.has_classes:
        # Where nothing is left the gradient of q ln q is not a number; what is a constant has none.
        return (kind.divergence(answer.log(), torch.where(mixed > 0, mixed, 0.0), 1.0) * mass).mean()
    return (kind.divergence(answer.logit(), mixed.clamp(_LEAST, 1 - _LEAST), 1.0) * mass).mean()


def _as_bytes(names: Sequence[str]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
