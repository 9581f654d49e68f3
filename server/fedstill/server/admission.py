"""What may come in: every answer is checked before it touches anything, and a refusal is a counted value.

Nothing that a client sends can end a run. A `Rejection` says who, why (one of `Reason`) and the details.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, Message, RecordDict
from numpy.typing import NDArray

from fedstill.common import introduction, records, wire
from fedstill.common.embeddings import Embeddings
from fedstill.common.errors import FedstillError, KnowledgeError, MismatchError, Reason
from fedstill.common.knowledge import AboutSamples, Form, Layout, Parameters, Prototypes, SoftLabels
from fedstill.common.messages import Answer, Order, TaskAnswer
from fedstill.common.sides import ClientInfo
from fedstill.common.task import TaskSpec
from fedstill.server.inbox import check_bytes

log = logging.getLogger(__name__)

LONGEST_DETAIL = 500
"""Characters of a rejection's detail: it quotes what a stranger sent, and is written to the run's files."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something that did not count.

    Attributes:
        client: the client's name, or "node N" for one that has not introduced itself.
        reason: why.
        detail: the message.
    """

    client: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class TaskGate:
    """What an answer about one task must look like.

    Attributes:
        spec: the task over its whole label space.
        exchange: kind of knowledge that the method expects; "nothing" for none.
        proxy_digest: of the server's proxy set.
        layout: of the global model's weights, for a method that sends weights.
        beside: of what it sends beside them.
        model: name of the global model; "" for a method that sends no weights.
        models: layouts of the clients' own models by name, for a method that sends those; else empty.
        clients: who has the task.
        asked: form and temperature of soft labels; see `algorithm.asked`.
        features: width of the features in prototypes or embeddings; 0 for none.
        predictions: whether prototypes have predictions.
    """

    spec: TaskSpec
    exchange: str
    proxy_digest: str
    layout: Layout
    clients: Mapping[str, ClientInfo]
    asked: tuple[Form, float] = ("probabilities", 1.0)
    features: int = 0
    predictions: bool = False
    beside: Layout = field(default_factory=dict)
    model: str = ""
    models: Mapping[str, Layout] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gate:
    """What an answer of one client in one round must look like.

    Attributes:
        client: who was asked.
        order: what was asked.
        tasks: by name.
        largest: bytes of a message.
    """

    client: str
    order: Order
    tasks: Mapping[str, TaskGate]
    largest: int

    def admit(
        self, reply: Message, *, answered: bool = False, fault: FedstillError | None = None
    ) -> Answer | Rejection:
        """An answer that may be used, or why not.

        Args:
            reply: as it came.
            answered: this client's answer of this round is in already.
            fault: why it could not even be read.
        """
        if reply.has_error() and fault is None:
            return self._rejection(Reason.CLIENT_ERROR, last_line(reply.error.reason or "no reason given"))
        if answered:
            fault = MismatchError("a second answer", "the first one counts", reason=Reason.DUPLICATE)
        if fault is not None:
            # Not raised: it would hold this frame and be held by it, with all that came.
            return self._refused(fault)
        try:
            check_bytes(declared_bytes(reply.content), self.largest)
            # Before the protocol is compared, for a client of another one says so in a refusal; and after.
            refusal = introduction.read_refusal(reply.content)
            content = reply.content if refusal is not None else wire.opened(reply.content)
            refusal = refusal or introduction.read_refusal(content)
            if refusal is not None:
                return self._rejection(refusal.reason, refusal.detail)
            check_bytes(declared_bytes(content), self.largest)
            answer = records.read_answer(content, self.order)
            self._check(answer)
        except FedstillError as error:
            return self._refused(error)
        except (
            Exception
        ) as error:  # the border: whatever a stranger's bytes bring about counts against the stranger alone
            log.debug("an answer of %s failed in an unforeseen way", self.client, exc_info=True)
            return self._rejection(Reason.MALFORMED, f"{type(error).__name__}: {error}")
        return answer

    def _refused(self, error: FedstillError) -> Rejection:
        reason = error.reason if isinstance(error, KnowledgeError | MismatchError) else Reason.MALFORMED
        return self._rejection(reason, str(error))

    def _rejection(self, reason: Reason, detail: str) -> Rejection:
        return Rejection(self.client, reason, fit_to_show(detail))

    def _check(self, answer: Answer) -> None:
        if answer.client != self.client:
            raise MismatchError(f"client '{answer.client}'", f"expected '{self.client}'", reason=Reason.SENDER)
        came = (answer.run, answer.round, answer.attempt)
        asked = (self.order.run, self.order.round, self.order.attempt)
        if came != asked:
            raise MismatchError(
                "run '{}', round {}, attempt {}".format(*came),
                "expected run '{}', round {}, attempt {}".format(*asked),
                reason=Reason.STALE,
            )
        expected = {name for name, gate in self.tasks.items() if self.client in gate.clients}
        if set(answer.tasks) != expected:
            raise MismatchError(f"tasks {sorted(answer.tasks)}", f"expected {sorted(expected)}", reason=Reason.TASK)
        for name in expected:
            self._check_task(self.tasks[name], answer.tasks[name], self.order.tasks[name].samples)

    def _check_task(self, gate: TaskGate, answer: TaskAnswer, samples: NDArray[np.int64]) -> None:
        if answer.proxy_digest != gate.proxy_digest:
            raise MismatchError(
                f"proxy set {answer.proxy_digest[:12]}", f"expected {gate.proxy_digest[:12]}", reason=Reason.PROXY
            )
        if answer.examples < 1:
            raise KnowledgeError(f"{answer.examples} examples", "expected at least 1", reason=Reason.RANGE)
        kind = answer.knowledge.kind if answer.knowledge is not None else "nothing"
        if kind != gate.exchange:
            raise MismatchError(f"knowledge of kind '{kind}'", f"expected '{gate.exchange}'", reason=Reason.KIND)
        if isinstance(answer.knowledge, SoftLabels):
            _check_soft_labels(answer.knowledge, gate, gate.clients[self.client].classes)
        if isinstance(answer.knowledge, AboutSamples):
            _check_samples(answer.knowledge, samples)
        elif isinstance(answer.knowledge, Parameters):
            _check_parameters(answer.knowledge, gate, gate.clients[self.client].model)
        elif isinstance(answer.knowledge, Prototypes):
            _check_prototypes(answer.knowledge, gate, gate.clients[self.client].classes)
            self._check_origin(answer.knowledge, int(answer.knowledge.counts.sum()), answer.examples)
        elif isinstance(answer.knowledge, Embeddings):
            _check_embeddings(answer.knowledge, gate, gate.clients[self.client].classes)
            self._check_origin(answer.knowledge, len(answer.knowledge.labels), answer.examples)

    def _check_origin(self, knowledge: Prototypes | Embeddings, count: int, examples: int) -> None:
        if knowledge.round != self.order.round:
            raise MismatchError(
                f"{knowledge.kind} of round {knowledge.round}", f"expected {self.order.round}", reason=Reason.STALE
            )
        if count > examples:
            raise KnowledgeError(
                f"{knowledge.kind} of {count} examples",
                f"expected at most the {examples} that it has",
                reason=Reason.RANGE,
            )


def _check_soft_labels(labels: SoftLabels, gate: TaskGate, own: tuple[str, ...]) -> None:
    came = (labels.output, labels.form, labels.temperature)
    if came != (gate.spec.output, *gate.asked):
        raise MismatchError(
            "{} {} at temperature {}".format(*came),
            "expected {} {} at temperature {}".format(gate.spec.output, *gate.asked),
            reason=Reason.KIND,
        )
    if labels.values.shape[1:-1] != gate.spec.positions:
        raise KnowledgeError(
            f"predictions at {labels.values.shape[1:-1]} positions",
            f"expected {gate.spec.positions}",
            reason=Reason.SHAPE,
        )
    _check_announced(set(labels.classes), own)


def _check_prototypes(prototypes: Prototypes, gate: TaskGate, own: tuple[str, ...]) -> None:
    width = prototypes.features.shape[1]
    if width != gate.features or bool(prototypes.columns) != gate.predictions:
        raise KnowledgeError(
            f"prototypes with {width} features and {len(prototypes.columns)} predictions",
            f"expected {gate.features} features and {'some' if gate.predictions else 'no'} predictions",
            reason=Reason.SHAPE,
        )
    _check_announced({*prototypes.classes, *prototypes.columns}, own)


def _check_embeddings(embeddings: Embeddings, gate: TaskGate, own: tuple[str, ...]) -> None:
    width = embeddings.features.shape[1]
    if width != gate.features or not len(embeddings.labels):
        raise KnowledgeError(
            f"embeddings with {width} features and {len(embeddings.labels)} labels",
            f"expected {gate.features} features, and a label for each example",
            reason=Reason.SHAPE,
        )
    _check_announced(set(embeddings.classes), own)


def _check_announced(classes: set[str], own: tuple[str, ...]) -> None:
    strange = sorted(classes - set(own))
    if strange:
        raise KnowledgeError(
            f"classes {strange[:5]}", f"expected some of the {len(own)} it announced", reason=Reason.CLASSES
        )


def _check_samples(knowledge: AboutSamples, samples: NDArray[np.int64]) -> None:
    if np.array_equal(knowledge.samples, samples) and len(samples):
        return
    if not isinstance(knowledge, SoftLabels):
        # Distances and spaces are taken over the samples that everybody answered: fewer of one are fewer of all.
        raise KnowledgeError(
            f"{knowledge.kind} of {len(knowledge.samples)} samples",
            f"expected this round's {len(samples)}, in their order",
            reason=Reason.SAMPLES,
        )
    if not len(knowledge.samples) or not np.isin(knowledge.samples, samples).all():
        raise KnowledgeError(
            "no samples, or some that were not asked for", "expected this round's", reason=Reason.SAMPLES
        )


def _check_parameters(parameters: Parameters, gate: TaskGate, own: str) -> None:
    model, layout = (own, gate.models[own]) if gate.models else (gate.model, gate.layout)
    came = parameters.layout()
    if came != layout:
        differing = sorted(set(came.items()) ^ set(layout.items()))[:3]
        raise KnowledgeError(
            f"weights {differing}", f"expected names, shapes and types of '{model}'", reason=Reason.SHAPE
        )
    if parameters.model != model:
        raise KnowledgeError(f"weights of '{parameters.model}'", f"expected '{model}'", reason=Reason.KIND)
    if parameters.beside_layout() != gate.beside:
        raise KnowledgeError(
            f"{parameters.beside_layout()} beside the weights", f"expected {dict(gate.beside)}", reason=Reason.SHAPE
        )


def declared_bytes(content: RecordDict) -> int:
    """Bytes of everything in a message, without decoding an array."""
    return sum(len(key) + _bytes(value) for record in content.values() for key, value in record.items())


def _bytes(value: object) -> int:
    if isinstance(value, Array):
        return len(value.data)
    if isinstance(value, list):
        return sum(_bytes(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8


def fit_to_show(told: str) -> str:
    """What a stranger says, in one line of at most `LONGEST_DETAIL` characters, none of which a terminal obeys."""
    start = " ".join(told[: 2 * LONGEST_DETAIL].split())
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in start)[:LONGEST_DETAIL]


def last_line(text: str) -> str:
    """What went wrong: the last line of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
