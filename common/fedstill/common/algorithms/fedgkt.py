"""FedGKT: small models give the features of their private examples to a large one on the server, and hear its answers.

He et al. 2020, https://arxiv.org/abs/2007.14513, algorithm 1. With client k's features h_k(x) and raw outputs z_k(x) of
its private examples, and the server's model g on features, all soft at temperature T:

    answer   h_k(x), z_k(x) and y for every private example x
    merge    g ← argmin CE(y, g(h)) + w · T² · KL( softmax(z_k / T) ‖ softmax(g(h) / T) ) over everybody's examples
             back to client k: g(h_k(x)) for its own examples
    local    student k ← argmin CE(y, z) + w · T² · KL( softmax(g / T) ‖ softmax(z / T) ) on the private data

No proxy set is needed. Features, outputs and labels of each private example leave the client: its guard lets them out
only if its owner says so. All clients' features need one width, that of what their last layer reads.

Deviations: features are what the last layer reads, where the paper cuts the network after its first convolutions, and g
is a multi-layer perceptron, where the paper has the rest of a ResNet; clients answer with their own last layer, where
the paper's predict with g; the server's steps are those of `[training]`. A client that is away keeps the answers that
it was given last. With other label spaces g knows all classes, and a divergence is over those of the client.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedstill.common import check
from fedstill.common.embeddings import LARGEST_EMBEDDING, Embeddings
from fedstill.common.errors import KnowledgeError
from fedstill.common.keeping import forget, keep, kept
from fedstill.common.knowledge import Contribution, Knowledge, Personal
from fedstill.common.labels import Classes, ordered, positions
from fedstill.common.learning import fit, predict
from fedstill.common.losses import soft_label_loss
from fedstill.common.models import build_model
from fedstill.common.outputs import output_kind
from fedstill.common.seeding import derive
from fedstill.common.sides import Client, Server, embeddings_of
from fedstill.common.task import TaskSpec

log = logging.getLogger(__name__)

_TOLD, _GIVEN, _MODEL = "fedgkt.told", "fedgkt.given.", "fedgkt.model."
_OUT = -1e9
"""A raw output of a class that a client does not know."""


@dataclass(frozen=True, slots=True)
class FedGKT:
    """Students learn from a large model on the server, which reads the features of their private examples.

    Attributes:
        temperature: T of both divergences.
        weight: w of the divergences beside the task's own loss.
        server_epochs: passes of the server's model over all features in one round.
        server_size: of that model, a multi-layer perceptron.
    """

    name: ClassVar[str] = "fedgkt"
    paper: ClassVar[str] = "He et al. 2020, https://arxiv.org/abs/2007.14513"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "embeddings"
    parts: ClassVar[frozenset[str]] = frozenset({"features", "predictions"})
    homogeneous: ClassVar[bool] = False

    temperature: float = 3.0
    weight: float = 1.0
    server_epochs: int = 5
    server_size: Literal["small", "medium", "large"] = "large"

    def __post_init__(self) -> None:
        check.positive("soft labels are softmax(z / temperature)", algorithm_temperature=self.temperature)
        check.positive(algorithm_weight=self.weight)
        check.at_least(1, algorithm_server_epochs=self.server_epochs)
        check.one_of(("small", "medium", "large"), algorithm_server_size=self.server_size)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Keep the server's answers about the own examples, for the steps on them."""
        keep(client.memory, _TOLD, embeddings_of(received))

    def local(self, client: Client) -> Embeddings:
        """Train on private data towards the server's answers, then tell the features, outputs and labels."""
        told = kept(client.memory, _TOLD)
        forget(client.memory, _TOLD)
        if told is None or not self._train(client, embeddings_of(told)):
            client.train()
        features, logits = client.embedded()
        return Embeddings(
            classes=client.spec.classes,
            logits=logits.contiguous().numpy(),
            features=features.contiguous().numpy(),
            labels=client.private.targets.numpy(),
            round=client.round,
        )

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Personal:
        """Train the server's model on all features; everybody hears what it says of their own examples."""
        names = sorted(contribution.client for contribution in contributions)
        said = {one.client: embeddings_of(one.knowledge) for one in contributions}
        features = torch.cat([torch.from_numpy(said[name].features) for name in names])
        model = self._model(server, features.shape[1])
        fit(
            model,
            features,
            lesson([said[name] for name in names], space=server.spec.classes, temperature=self.temperature),
            self._loss,
            training=server.training,
            epochs=self.server_epochs,
            seed=derive(server.seed, "large"),
        )
        answers = predict(model, features, training=server.training)
        if torch.isfinite(answers).all():
            server.memory |= {_MODEL + key: value.clone() for key, value in model.state_dict().items()}
            rows = torch.split(answers, [len(said[name].logits) for name in names])
            for name, own in zip(names, rows, strict=True):
                keep(server.memory, _GIVEN + name, _back(said[name], own, space=server.spec.classes))
        else:
            log.warning("the server's model of task '%s' diverged; it is as it was before", server.spec.name)
        everybody = dict.fromkeys([*names, *(client.name for client in server.clients)])
        given = {name: kept(server.memory, _GIVEN + name) for name in everybody}
        return Personal(None, {name: one for name, one in given.items() if one is not None})

    def _train(self, client: Client, told: Embeddings) -> bool:
        """Train towards the server's answers; False, and nothing done, if they are not about these examples."""
        kind, shared = client.spec.kind, ordered(told.classes, client.spec.classes)
        if len(told.logits) != len(client.private) or not shared:
            return False
        own = torch.from_numpy(positions(shared, client.spec.classes))
        theirs = torch.from_numpy(positions(shared, told.classes))
        soft = kind.soften(torch.from_numpy(told.logits)[:, theirs], self.temperature)

        def loss(logits: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
            apart = soft_label_loss(logits[:, own], soft, kind=kind, temperature=self.temperature)
            return kind.loss(logits, labels) + self.weight * apart

        private = client.private
        epochs = client.training.epochs
        client.fit(private.inputs, (private.targets, soft), loss, epochs=epochs, purpose="train")
        return True

    def _loss(self, logits: Tensor, labels: Tensor, soft: Tensor, known: Tensor) -> Tensor:
        """The server's: its outputs (B, C), true classes (B,), soft labels of clients and classes they know (B, C)."""
        kind = output_kind("categorical")
        apart = soft_label_loss(logits.masked_fill(~known, _OUT), soft, kind=kind, temperature=self.temperature)
        return kind.loss(logits, labels) + self.weight * apart

    def _model(self, server: Server, width: int) -> nn.Module:
        """The server's model of features, as it was after the last round."""
        spec = TaskSpec(server.spec.name, "categorical", "tabular", server.spec.classes, (width,))
        model = build_model(f"mlp-{self.server_size}", spec, seed=derive(server.seed, "weights"))
        before = {key.removeprefix(_MODEL): value for key, value in server.memory.items() if key.startswith(_MODEL)}
        if before:
            model.load_state_dict(before)
        return model


def lesson(said: Sequence[Embeddings], *, space: Classes, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the server's model learns of all examples, client after client, over the task's C classes.

    Args:
        said: by the clients, over their own classes.
        space: the task's label space.
        temperature: of the soft labels.

    Returns:
        True classes (N,), clients' soft labels (N, C) with 0 for the classes that they lack, and whether they know a
        class (N, C).

    Raises:
        KnowledgeError: if there is nothing, or a client knows a class that the task has not.
    """
    if not said:
        raise KnowledgeError("no embeddings", "expected at least one contribution")
    labels, soft, known = [], [], []
    for one in said:
        columns = torch.from_numpy(positions(one.classes, space))
        labels.append(columns[torch.from_numpy(one.labels)])
        full = torch.zeros(len(one.logits), len(space))
        full[:, columns] = torch.softmax(torch.from_numpy(one.logits) / temperature, -1)
        soft.append(full)
        known.append(torch.zeros(len(space), dtype=torch.bool).index_fill(0, columns, True).expand(full.shape))
    return torch.cat(labels), torch.cat(soft), torch.cat(known)


def _back(said: Embeddings, answers: Tensor, *, space: Classes) -> Embeddings:
    """The server's outputs (N, C) for one client's examples, over the classes that it knows."""
    columns = torch.from_numpy(positions(said.classes, space))
    logits = answers[:, columns].clamp(-LARGEST_EMBEDDING, LARGEST_EMBEDDING).contiguous().numpy()
    return Embeddings(
        classes=said.classes,
        logits=logits,
        features=np.zeros((len(logits), 0), np.float32),
        labels=np.zeros(0, np.int64),
        round=said.round,
    )
