"""What may come in: every answer is checked before it touches anything, and a refusal is a counted value.

Nothing that a client sends can end a run. A `Rejection` says who, why (one of `Reason`) and the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedstill.common import records
from fedstill.common.errors import FedstillError, KnowledgeError, MismatchError, Reason
from fedstill.common.knowledge import Parameters, SoftLabels
from fedstill.common.messages import Answer, Order, TaskAnswer
from fedstill.common.sides import ClientInfo
from fedstill.common.task import TaskSpec


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
        shapes: of the global model's weights, for a method that sends weights.
        clients: who has the task.
    """

    spec: TaskSpec
    exchange: str
    proxy_digest: str
    shapes: Mapping[str, tuple[int, ...]]
    clients: Mapping[str, ClientInfo]


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

    def admit(self, reply: Message, *, answered: bool = False) -> Answer | Rejection:
        """An answer that may be used, or why not.

        Args:
            reply: as it came.
            answered: this client's answer of this round is in already.
        """
        if reply.has_error():
            return Rejection(self.client, Reason.CLIENT_ERROR, last_line(reply.error.reason or "no reason given"))
        try:
            if answered:
                raise MismatchError("a second answer", "the first one counts", reason=Reason.DUPLICATE)
            self._check_size(declared_bytes(reply.content))
            answer = records.read_answer(reply.content, self.order)
            self._check(answer)
        except (KnowledgeError, MismatchError) as error:
            return Rejection(self.client, error.reason, str(error))
        except (FedstillError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            return Rejection(self.client, Reason.MALFORMED, f"{type(error).__name__}: {error}")
        return answer

    def _check_size(self, size: int) -> None:
        if size > self.largest:
            raise KnowledgeError(
                f"{size} bytes",
                f"expected at most {self.largest}",
                "raise rounds.largest-message if that is right",
                reason=Reason.TOO_LARGE,
            )

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
            _check_soft_labels(answer.knowledge, gate.spec, gate.clients[self.client].classes, samples)
        elif isinstance(answer.knowledge, Parameters):
            _check_parameters(answer.knowledge, gate.shapes)


def _check_soft_labels(
    labels: SoftLabels, spec: TaskSpec, own: tuple[str, ...], samples: NDArray[np.int64]
) -> None:
    if labels.output != spec.output:
        raise MismatchError(f"output kind '{labels.output}'", f"expected '{spec.output}'", reason=Reason.KIND)
    strange = sorted(set(labels.classes) - set(own))
    if strange:
        raise KnowledgeError(
            f"classes {strange[:5]}", f"expected some of the {len(own)} it announced", reason=Reason.CLASSES
        )
    if not np.isin(labels.samples, samples).all():
        raise KnowledgeError("samples that were not asked for", "expected this round's", reason=Reason.SAMPLES)


def _check_parameters(parameters: Parameters, shapes: Mapping[str, tuple[int, ...]]) -> None:
    came = {name: array.shape for name, array in parameters.weights.items()}
    if came != dict(shapes):
        differing = sorted(set(came.items()) ^ set(shapes.items()))[:3]
        raise KnowledgeError(
            f"weights {differing}", "expected the names and shapes of the global model", reason=Reason.SHAPE
        )


def declared_bytes(content: RecordDict) -> int:
    """Bytes of all arrays and texts in a message, without decoding one."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    values = (value for record in content.config_records.values() for value in record.values())
    return arrays + sum(_bytes(value) for value in values)


def _bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_bytes(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8


def last_line(text: str) -> str:
    """What went wrong: the last line of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
