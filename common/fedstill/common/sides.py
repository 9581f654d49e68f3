"""What a method may use on each side: the model, the proxy set, and four verbs (fit, predict, distil, soft labels).

An algorithm sees nothing else: no Flower, no files, no wire. `Client` adds the private data, `Server` what is known of
the clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedstill.common.augment import agreement
from fedstill.common.data.proxy import ProxySet
from fedstill.common.embeddings import Embeddings
from fedstill.common.errors import KnowledgeError, UnsupportedError
from fedstill.common.knowledge import Features, Form, Parameters, Prototypes, Relations, SoftLabels
from fedstill.common.labels import ordered, positions
from fedstill.common.learning import Loss, Training, arranged, fit, predict
from fedstill.common.losses import score_loss, soft_label_loss
from fedstill.common.network import Embedded, FeatureReader, Pair, feature_network
from fedstill.common.seeding import derive, torch_rng
from fedstill.common.task import Examples, TaskSpec

Memory = dict[str, Tensor]
"""State of a method that outlives a round, by name; it is saved with the model."""


@dataclass(slots=True, kw_only=True)
class Side:
    """One side's view of one task in one round.

    Attributes:
        spec: the task, over the classes that this side's model knows.
        model_name: architecture.
        model: the student on a client, the shared teacher or global model on the server.
        proxy: the public samples.
        samples: ids of the proxy samples that this round is about.
        training: how models are trained.
        seed: of (run, round, side, task).
        round: number of the round, from 1.
        rounds: how many the run has; the finish is one more.
        memory: what the method keeps between rounds.
    """

    spec: TaskSpec
    model_name: str
    model: nn.Module
    proxy: ProxySet
    samples: NDArray[np.int64]
    training: Training
    seed: int
    round: int
    rounds: int = 1
    memory: Memory = field(default_factory=dict)

    def fit(self, inputs: Tensor, targets: Sequence[Tensor], loss: Loss, *, epochs: int, purpose: str) -> float:
        """Train the model; `purpose` names this use of chance, once a round. Returns the last epoch's mean loss."""
        seed = derive(self.seed, purpose)
        return fit(
            self.model,
            inputs,
            targets,
            loss,
            training=self.training,
            epochs=epochs,
            seed=seed,
            regulariser=agreement(self.spec, self.training, seed=seed),
        )

    def predict(self, inputs: Tensor) -> Tensor:
        """Raw outputs of the model, float32 (N, …, C)."""
        return predict(self.model, inputs, training=self.training)

    def features(self, samples: NDArray[np.int64] | None = None) -> Tensor:
        """The model's features of proxy samples (this round's if none are named), float32 (N, D).

        Raises:
            UnsupportedError: if the model has none.
        """
        reader = FeatureReader(feature_network(self.model, self.model_name))
        return predict(reader, self.proxy.at(self.samples if samples is None else samples), training=self.training)

    def soft_labels(self, *, temperature: float = 1.0, form: Form = "probabilities") -> SoftLabels:
        """The model's predictions on this round's proxy samples."""
        inputs = self.proxy.at(self.samples)
        values = self.predict(inputs)
        if form == "probabilities":
            values = self.spec.kind.blank(self.spec.kind.soften(values, temperature), inputs)
        return SoftLabels(self.spec.output, self.spec.classes, self.samples, values.numpy(), temperature, form)

    def distil(self, teacher: SoftLabels, *, epochs: int, loss: Loss | None = None) -> float:
        """Train the model towards a teacher's predictions on proxy samples.

        The teacher's classes that this model lacks are left out; a sample then counts as much as the teacher's mass on
        the classes that remain. Classes that the teacher lacks are left alone.

        Args:
            teacher: soft labels (KL at their temperature) or raw scores (mean absolute difference).
            epochs: passes over the samples.
            loss: (logits over the shared classes, values, weights) → scalar, instead of the usual one.

        Returns:
            Mean loss of the last epoch; NaN if they share no class.
        """
        if not ordered(teacher.classes, self.spec.classes):
            return float("nan")
        inputs, targets, chosen = self.lesson(teacher, loss)
        return self.fit(inputs, targets, chosen, epochs=epochs, purpose="distil")

    def lesson(self, teacher: SoftLabels, loss: Loss | None = None) -> tuple[Tensor, tuple[Tensor, Tensor], Loss]:
        """Inputs, targets (values, weights) and loss of a distillation, as `fit` takes them; see `distil`."""
        shared = ordered(teacher.classes, self.spec.classes)
        own = torch.from_numpy(positions(shared, self.spec.classes))
        theirs = torch.from_numpy(positions(shared, teacher.classes))
        values = torch.from_numpy(teacher.values)
        if teacher.form == "probabilities" and len(shared) < len(teacher.classes):
            values, weights = self.spec.kind.restrict(values, theirs)
        else:
            values, weights = values[..., theirs], torch.ones(len(values))
        chosen = loss or _usual_loss(self.spec, teacher)
        return (
            self.spec.kind.forced(self.proxy.at(teacher.samples), values),
            (values, weights),
            lambda logits, soft, weight: chosen(logits[..., own], soft, weight),
        )

    def train_on(self, examples: Examples, loss: Loss | None = None) -> float:
        """Train the model on examples for `training.epochs` (and `warmup`); returns the last epoch's mean loss."""
        return self.fit(
            self.spec.kind.forced(examples.inputs, examples.targets),
            (examples.targets,),
            loss or self.spec.kind.loss,
            epochs=self._epochs,
            purpose="train",
        )

    @property
    def _epochs(self) -> int:
        return self.training.epochs + (self.training.warmup if self.round == 1 else 0)

    def parameters(self) -> Parameters:
        """The model's weights."""
        return Parameters(self.model_name, {name: t.numpy().copy() for name, t in self.model.state_dict().items()})

    def load(self, parameters: Parameters) -> None:
        """Put weights into the model.

        Raises:
            UnsupportedError: if they belong to another architecture.
        """
        own = self.model.state_dict()
        if parameters.model != self.model_name or {n: tuple(t.shape) for n, t in own.items()} != {
            n: a.shape for n, a in parameters.weights.items()
        }:
            raise UnsupportedError(
                f"weights of '{parameters.model}' in a model '{self.model_name}'",
                "expected one architecture",
                "a method that sends weights needs the same model everywhere",
            )
        self.model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in parameters.weights.items()})


@dataclass(slots=True, kw_only=True)
class Client(Side):
    """A client's side: `private` never leaves it.

    Attributes:
        name: the client's name.
        private: its own examples.
        trust: weight of the shared knowledge, 0 to 1, for a method that trains on it and on private data at once.
    """

    name: str
    private: Examples
    trust: float = 1.0

    def train(self, loss: Loss | None = None) -> float:
        """Train the student on the private data for `training.epochs`; returns the last epoch's mean loss."""
        return self.train_on(self.private, loss)

    def train_among(self, teacher: SoftLabels) -> float:
        """Train as `train` does, with proxy samples among the private examples, each with a teacher's prediction of it.

        What the student learns from one kind of data it does not forget over the other. An example counts 1. A proxy
        sample counts `trust`, less where there are more proxy samples than examples, so that all of them together count
        no more than the examples do; and as `distil` has it where the teacher knows other classes.

        Returns:
            Mean loss of the last epoch.
        """
        if not ordered(teacher.classes, self.spec.classes):
            return self.train()
        kind, examples = self.spec.kind, self.private
        private = kind.forced(examples.inputs, examples.targets)
        public, (values, weights), towards = self.lesson(teacher)
        share = self.trust * min(1.0, len(private) / max(1, len(public)))

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            own = rows < len(private)
            mine, other = rows[own], rows[~own] - len(private)
            total = logits.new_zeros(())
            if len(mine):
                total = total + len(mine) * kind.loss(logits[own], examples.targets[mine])
            if len(other):
                total = total + share * len(other) * towards(logits[~own], values[other], weights[other])
            return total / len(rows)

        inputs = torch.cat([private, public])
        return self.fit(inputs, (torch.arange(len(inputs)),), loss, epochs=self._epochs, purpose="train")

    def private_features(self) -> Tensor:
        """The model's features of the private examples, float32 (N, D).

        Raises:
            UnsupportedError: if the model has none.
        """
        reader = FeatureReader(feature_network(self.model, self.model_name))
        return predict(reader, self.private.inputs, training=self.training)

    def embedded(self) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) of the private examples, which the last layer reads, and raw outputs (N, C); float32.

        Raises:
            UnsupportedError: if the model has none.
        """
        reader = Embedded(feature_network(self.model, self.model_name), self.model_name)
        both = predict(reader, self.private.inputs, training=self.training)
        return both[:, : reader.last.in_features], both[:, reader.last.in_features :]

    def train_embedded(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        """Train as `train` does, towards a loss of embeddings too.

        Args:
            loss: (embeddings (B, D), raw outputs (B, C), targets (B,)) → scalar, the task's own loss included.

        Returns:
            Mean of the whole loss in the last epoch.

        Raises:
            UnsupportedError: if the model has no embeddings.
        """
        reader = Embedded(feature_network(self.model, self.model_name), self.model_name)
        width, seed = reader.last.in_features, derive(self.seed, "train")
        agree = agreement(self.spec, self.training, seed=seed)
        return fit(
            reader,
            self.private.inputs,
            (self.private.targets,),
            lambda both, targets: loss(both[:, :width], both[:, width:], targets),
            training=self.training,
            epochs=self._epochs,
            seed=seed,
            regulariser=agree and (lambda run, inputs: agree(lambda view: run(view)[:, width:], inputs)),
        )

    def train_beside(self, teacher: SoftLabels, *, weight: float) -> float:
        """Train as `train` does, with a batch of proxy samples in each step towards a teacher's predictions of them.

        Args:
            teacher: soft labels or raw scores of proxy samples, as for `distil`.
            weight: of their loss; the task's own has 1.

        Returns:
            Mean of the whole loss in the last epoch.
        """
        if not len(teacher.samples) or not ordered(teacher.classes, self.spec.classes):
            return self.train()
        inputs, targets, distance = self.lesson(teacher)
        inputs = arranged(inputs, self.training)
        batches = _batches(len(inputs), self.training.batch_size, seed=derive(self.seed, "beside"))

        def both(logits: Tensor, labels: Tensor) -> Tensor:
            batch = next(batches)
            beside = self.model(_typed(self.model, inputs[batch])).float()
            apart = distance(beside, *(part[batch] for part in targets))
            return self.spec.kind.loss(logits, labels) + weight * apart

        return self.train(both)

    def train_pair(self, other: nn.Module, loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> float:
        """Train the student, as `train` does, and another model on the same batches.

        Args:
            other: a model of the same outputs; it is trained along.
            loss: (the student's raw outputs (B, …, C), the other's, targets, inputs) → scalar, the task's own loss
                included.

        Returns:
            Mean of the whole loss in the last epoch.
        """
        width, seed = len(self.spec.classes), derive(self.seed, "train")
        inputs = self.spec.kind.forced(self.private.inputs, self.private.targets)
        agree = agreement(self.spec, self.training, seed=seed)
        return fit(
            Pair(self.model, other),
            inputs,
            (self.private.targets, inputs),
            lambda both, targets, batch: loss(both[..., :width], both[..., width:], targets, batch),
            training=self.training,
            epochs=self._epochs,
            seed=seed,
            regulariser=agree
            and (
                lambda run, batch: (
                    agree(lambda view: run(view)[..., :width], batch)
                    + agree(lambda view: run(view)[..., width:], batch)
                )
            ),
        )

    def train_features(
        self,
        samples: NDArray[np.int64],
        loss: Loss,
        *,
        weight: float,
        epochs: int,
        projector: nn.Module | None = None,
    ) -> float:
        """Train towards what the features of proxy samples should be, with a batch of private data in each step.

        Without the private data the features would move and leave the head behind.

        Args:
            samples: ids of proxy samples.
            loss: (features (B, D), places (B,) of their samples among `samples`) → scalar.
            weight: of that loss; the task's own has 1.
            epochs: passes over the proxy samples.
            projector: reads the features before the loss does, and is trained along.

        Returns:
            Mean of the whole loss in the last epoch.

        Raises:
            UnsupportedError: if the model has no features.
        """
        network, kind = feature_network(self.model, self.model_name), self.spec.kind
        seed = derive(self.seed, "features")
        private = arranged(kind.forced(self.private.inputs, self.private.targets), self.training)
        batches = _batches(len(private), self.training.batch_size, seed=seed)

        def both(features: Tensor, places: Tensor) -> Tensor:
            batch = next(batches)
            own = kind.loss(network(network.typed(private[batch])).float(), self.private.targets[batch])
            return own + weight * loss(features, places)

        reader, places = FeatureReader(network, projector), torch.arange(len(samples))
        inputs = self.proxy.at(samples)
        return fit(reader, inputs, (places,), both, training=self.training, epochs=epochs, seed=seed)


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What the server knows of a client for one task: nothing of its data but their number.

    Attributes:
        name: the client's name.
        model: its architecture.
        parameters: number of the model's weights.
        examples: number of private examples.
        classes: what its model can tell apart.
    """

    name: str
    model: str
    parameters: int
    examples: int
    classes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Server(Side):
    """The server's side.

    Attributes:
        clients: everybody in the run who has the task, by name.
        group: whose proxy samples they are: tasks of one group speak about the same.
        pooled: all private data in one place; only a simulation has it.
    """

    clients: tuple[ClientInfo, ...] = ()
    group: str = ""
    pooled: Callable[[], Examples] | None = None


def _typed(model: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs in the type of a model's weights, which may be bf16 for the time being; token ids stay as they are."""
    return inputs.to(next(model.parameters()).dtype) if inputs.is_floating_point() else inputs


def taught(server: Server, consensus: SoftLabels, *, epochs: int) -> SoftLabels:
    """What the server's model predicts after it has learnt from a consensus: on the round's samples and on those of it.

    Args:
        server: the server's side; its model is trained.
        consensus: to learn from.
        epochs: passes over its samples.

    Returns:
        Predictions of the consensus' form and temperature, over its classes: of others the model has heard nothing.
    """
    server.distil(consensus, epochs=epochs)
    asked = replace(server, samples=np.union1d(server.samples, consensus.samples))
    answer = asked.soft_labels(temperature=consensus.temperature, form=consensus.form)
    if answer.classes == consensus.classes:
        return answer
    columns = torch.from_numpy(positions(consensus.classes, answer.classes))
    values = torch.from_numpy(answer.values)
    told = server.spec.kind.restrict(values, columns)[0] if answer.form == "probabilities" else values[..., columns]
    return SoftLabels(answer.output, consensus.classes, answer.samples, told.numpy(), answer.temperature, answer.form)


def _batches(count: int, size: int, *, seed: int) -> Iterator[Tensor]:
    """Batches of rows for ever, in a new order each time round."""
    order = torch_rng(seed, "private")
    while True:
        yield from torch.split(torch.randperm(count, generator=order), size)


def _usual_loss(spec: TaskSpec, teacher: SoftLabels) -> Loss:
    if teacher.form == "logits":
        return score_loss

    def loss(logits: Tensor, soft: Tensor, weights: Tensor) -> Tensor:
        return soft_label_loss(logits, soft, kind=spec.kind, temperature=teacher.temperature, weights=weights)

    return loss


_Kind = TypeVar("_Kind", SoftLabels, Parameters, Relations, Features, Prototypes, Embeddings)


def soft_labels_of(knowledge: object) -> SoftLabels:
    """The knowledge as soft labels; KnowledgeError if it is of another kind."""
    return _of(SoftLabels, knowledge)


def parameters_of(knowledge: object) -> Parameters:
    """The knowledge as weights; KnowledgeError if it is of another kind."""
    return _of(Parameters, knowledge)


def relations_of(knowledge: object) -> Relations:
    """The knowledge as relations; KnowledgeError if it is of another kind."""
    return _of(Relations, knowledge)


def features_of(knowledge: object) -> Features:
    """The knowledge as features; KnowledgeError if it is of another kind."""
    return _of(Features, knowledge)


def prototypes_of(knowledge: object) -> Prototypes:
    """The knowledge as prototypes; KnowledgeError if it is of another kind."""
    return _of(Prototypes, knowledge)


def embeddings_of(knowledge: object) -> Embeddings:
    """The knowledge as embeddings; KnowledgeError if it is of another kind."""
    return _of(Embeddings, knowledge)


def _of(kind: type[_Kind], knowledge: object) -> _Kind:
    if not isinstance(knowledge, kind):
        raise KnowledgeError(f"{type(knowledge).__name__}", f"expected {kind.__name__}")
    return knowledge
