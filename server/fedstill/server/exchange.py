"""Messages out, replies in: everything that the round engine knows of Flower's `Grid`.

Messages are pushed and pulled: `send_and_receive` gives all replies or those of its timeout, polls every three seconds,
and cannot tell who is missing. How is in `outbox` and
`inbox`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedstill.common.errors import FedstillError
from fedstill.server.inbox import LARGEST, inbox
from fedstill.server.outbox import push

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two looks for replies: short while they come, longer while they do not."""

SPARE_TTL = 60.0
"""Seconds by which a message outlives its deadline: an expired one comes back as an error in place of the reply."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply and who was asked.

    Attributes:
        client: the name of the client that the question went to.
        message: as it came.
        again: this client's reply to this question came before.
        fault: why it cannot be read, in which case the message is an error; None if it can.
    """

    client: str
    message: Message
    again: bool
    fault: FedstillError | None = None


def ask(
    grid: Grid,
    questions: Mapping[str, RecordDict],
    nodes: Mapping[str, int],
    *,
    kind: str,
    group: str,
    deadline: float,
    clock: Clock = time.monotonic,
    largest: int = LARGEST,
) -> Iterator[Reply]:
    """Ask clients and give their replies as they come, until all are here or the deadline has passed.

    Args:
        grid: Flower's.
        questions: content by client name.
        nodes: node id by client name.
        kind: message type, such as "train.round".
        group: shown in Flower's logs.
        deadline: seconds from now, on the monotonic clock: a change of the wall clock moves nothing.
        clock: the monotonic clock, in seconds.
        largest: bytes of a reply.
    """
    end = clock() + deadline
    waiting = _push(grid, questions, nodes, kind=kind, group=group, ttl=deadline + SPARE_TTL)
    asked = dict(waiting)
    pull = inbox(grid, largest=largest)
    pause = FIRST_PAUSE
    while waiting and clock() < end:
        looked = clock()
        replies = pull(list(waiting))
        for reply in replies:
            if reply.question in asked:
                again = waiting.pop(reply.question, None) is None
                yield Reply(asked[reply.question], reply.message, again, reply.fault)
        pause = FIRST_PAUSE if replies else min(pause * 1.5, LONGEST_PAUSE)
        if not replies:
            # A grid that waits by itself, as ours does, is not waited for twice.
            time.sleep(max(0.0, min(looked + pause, end) - clock()))


def _push(
    grid: Grid, questions: Mapping[str, RecordDict], nodes: Mapping[str, int], *, kind: str, group: str, ttl: float
) -> dict[str, str]:
    """Client name by message id, for every message that went out."""
    messages = [Message(content, nodes[name], kind, ttl=ttl, group_id=group) for name, content in questions.items()]
    accepted = set(push(grid, messages))
    if not accepted and len(messages) > 1:  # Flower's answer when the batch is too large for one request
        accepted = {identity for message in messages for identity in push(grid, [message])}
    # The ids come back without those that were refused, so that their order says nothing; each message knows its own.
    names = {message.metadata.message_id: name for message, name in zip(messages, questions, strict=True)}
    return {identity: name for identity, name in names.items() if identity in accepted}
