"""FML: every client's own student and a small meme model learn from each other; the memes are averaged.

Shen et al. 2020, https://arxiv.org/abs/2006.16765. With the predictions p_k(x) of the personal student, and m_k(x) of
its meme, on the private data (x, y):

    absorb   meme ← θ, the global model
    local    student ← argmin α · CE(y, p_k(x)) + (1 − α) · KL( m_k(x) ‖ p_k(x) )
             meme    ← argmin β · CE(y, m_k(x)) + (1 − β) · KL( p_k(x) ‖ m_k(x) )      on the same batches
    merge    θ ← Σ_k (n_k / n) θ_k, over the memes' weights

In each divergence the other model is a fixed teacher (deep mutual learning, Zhang et al. 2018,
https://arxiv.org/abs/1706.00384). The students never leave their clients and may all differ; the meme's architecture is
that of the server's model, the task's `teacher`. No proxy set is needed.

Deviations: α and β are constant over a run; both models take each step on the same batch at the same time, where deep
mutual learning updates one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedstill.common import check
from fedstill.common.algorithm import EVERY_OUTPUT
from fedstill.common.ensemble import mean_parameters
from fedstill.common.errors import KnowledgeError, Reason, UnsupportedError
from fedstill.common.knowledge import Contribution, Knowledge, Parameters
from fedstill.common.models import build_model, model_names
from fedstill.common.outputs import OutputKind
from fedstill.common.seeding import derive
from fedstill.common.sides import Client, Memory, Server, parameters_of

_NAME, _WEIGHT = "fml.name", "fml.weight."


@dataclass(frozen=True, slots=True)
class FML:
    """Every client's own student and a small meme model learn from each other; the memes are averaged.

    Attributes:
        student_share: α, the weight of the student's own loss; the rest is for the meme's predictions.
        meme_share: β, the weight of the meme's own loss; the rest is for the student's predictions.
    """

    name: ClassVar[str] = "fml"
    paper: ClassVar[str] = "Shen et al. 2020, https://arxiv.org/abs/2006.16765"
    outputs: ClassVar[frozenset[str]] = EVERY_OUTPUT
    exchange: ClassVar[str] = "parameters"
    homogeneous: ClassVar[bool] = False

    student_share: float = 0.5
    meme_share: float = 0.5

    def __post_init__(self) -> None:
        check.fraction(algorithm_student_share=self.student_share, algorithm_meme_share=self.meme_share)

    def start(self, server: Server) -> Parameters:
        """The first meme."""
        return server.parameters()

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Keep the global model beside the student, for the steps on private data."""
        told = parameters_of(received)
        _check_name(client, told.model)
        client.memory[_NAME] = torch.tensor(list(told.model.encode()), dtype=torch.uint8)
        client.memory |= {_WEIGHT + key: torch.from_numpy(array.copy()) for key, array in told.weights.items()}

    def local(self, client: Client) -> Parameters:
        """Train student and meme on private data, each with the other as teacher; answer with the meme's weights."""
        name, meme = _meme(client)
        kind = client.spec.kind

        def loss(student: Tensor, other: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
            own = mutual(kind, student, other, targets, inputs, share=self.student_share)
            return own + mutual(kind, other, student, targets, inputs, share=self.meme_share)

        if not math.isfinite(client.train_pair(meme, loss)):
            raise KnowledgeError("a student or meme that diverged", "expected a finite loss", reason=Reason.NOT_FINITE)
        return Parameters(name, {key: value.numpy().copy() for key, value in meme.state_dict().items()})

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Parameters:
        """Weighted mean of the memes' weights, which becomes the server's model."""
        mean = mean_parameters([parameters_of(c.knowledge) for c in contributions], [c.examples for c in contributions])
        server.load(mean)
        return mean


def mutual(kind: OutputKind, logits: Tensor, other: Tensor, targets: Tensor, inputs: Tensor, *, share: float) -> Tensor:
    """Loss of one of two: share · L(logits, targets) + (1 − share) · KL(other ‖ logits), mean over samples.

    No gradient goes to the other.

    Args:
        kind: what the outputs mean.
        logits: (B, …, C) raw outputs of the model that learns.
        other: (B, …, C) of the model that teaches.
        targets: as the output kind's loss takes them.
        inputs: (B, …), which say where there is padding.
        share: from 0 to 1.
    """
    soft = kind.blank(kind.soften(other.detach(), 1.0), inputs)
    if kind.selects:
        # After the end of a text a model that is told the right words has nothing to say.
        soft = soft * (targets != 0).unsqueeze(-1)
    return share * kind.loss(logits, targets) + (1 - share) * kind.divergence(logits, soft, 1.0).mean()


def _meme(client: Client) -> tuple[str, nn.Module]:
    """The meme that was heard last, or a new one like the student where there is none; it is forgotten here."""
    memory: Memory = client.memory
    if _NAME not in memory:
        return client.model_name, build_model(client.model_name, client.spec, seed=derive(client.seed, "meme"))
    name = bytes(memory.pop(_NAME).tolist()).decode()
    meme = build_model(name, client.spec, seed=0)
    kept = [key for key in memory if key.startswith(_WEIGHT)]
    meme.load_state_dict({key.removeprefix(_WEIGHT): memory.pop(key) for key in kept})
    return name, meme


def _check_name(client: Client, name: str) -> None:
    # A family without sizes reads a folder: no server chooses which.
    known = {client.model_name, *model_names(client.spec.modality, client.spec.output)}
    if name not in known:
        raise UnsupportedError(f"a meme model '{name}'", f"expected one of {', '.join(sorted(known))}")
