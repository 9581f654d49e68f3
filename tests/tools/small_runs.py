"""What tests of the round engine share: clients that fail or are spoilt, and ways to compare what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedstill.common.knowledge import Knowledge, SoftLabels
from fedstill.common.messages import ROUND
from fedstill.common.scenario import Scenario

Small = Callable[..., Scenario]
Play = Callable[..., Any]
Spoil = Callable[[RecordDict], None]

NAMES = ("client-0", "client-1", "client-2", "client-3")
TWO_TASKS: dict[str, Any] = {
    "tasks.wine.clients": [0, 1, 2],
    "tasks.digits": {
        "kind": "image",
        "source": "digits",
        "models": ["linear-softmax", "mlp-small"],
        "proxy": {"samples": 50},
        "private": 200,
        "test": 60,
        "clients": [1, 2, 3],
    },
}


def number_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


def attempt_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["attempt"]))


def failing(*, client: int, steps: Iterable[int] = (1,), kind: str = ROUND) -> Callable[..., Message]:
    """A client that raises in some steps."""

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == kind and number_of(context) == client and round_of(message) in steps:
            raise RuntimeError("no power")
        return inner(message, context)

    return tamper


def spoiling(spoil: Spoil, *, client: int = 1, step: int = 1, kind: str = ROUND) -> Callable[..., Message]:
    """A client whose answer to one step is spoilt on its way."""

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        wanted = message.metadata.message_type == kind and number_of(context) == client and round_of(message) == step
        reply = inner(message, context)
        if wanted:
            spoil(reply.content)
        return reply

    return tamper


def without_time(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def soft(knowledge: Knowledge | None) -> SoftLabels:
    assert isinstance(knowledge, SoftLabels)
    return knowledge


def same_knowledge(left: Knowledge | None, right: Knowledge | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.header() == right.header() and all(
        np.array_equal(array, right.arrays()[name]) for name, array in left.arrays().items()
    )
