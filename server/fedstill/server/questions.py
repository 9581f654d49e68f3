"""Orders as messages: what clients have in common is written once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

from flwr.app import RecordDict

from fedstill.common import records
from fedstill.common.cache import updated
from fedstill.common.codec import with_context
from fedstill.common.context import Memories
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import NO_SAMPLES, Order, TaskOrder
from fedstill.common.packing import content_bytes, packed
from fedstill.server.exchange import Reply


def write_questions(
    orders: Mapping[str, Order],
) -> tuple[dict[str, RecordDict], dict[str, Order], dict[str, int]]:
    """The content for each client, the order as the client hears it, and its bytes.

    Clients with the same tasks, who are told the same, and heard and remember the same, share all records but one.
    """
    shared: dict[Hashable, tuple[RecordDict, Order]] = {}
    sizes: dict[Hashable, int] = {}
    questions, heard, down = {}, {}, {}
    for name, order in orders.items():
        group = tuple(
            (task, id(part.knowledge), part.heard is not None, part.recalled.tobytes())
            for task, part in order.tasks.items()
        )
        if group not in shared:
            content = packed(records.write_order(order), apart=[records.CLIENT])
            shared[group] = content, as_heard(order, content)
        content, one = shared[group]
        questions[name] = records.for_client(content, order)
        parts = {task: replace(part, knowledge=one.tasks[task].knowledge) for task, part in order.tasks.items()}
        heard[name] = replace(order, tasks=parts)
        key = (group, order.version, tuple(part.own is not None for part in order.tasks.values()))
        if key not in sizes:
            sizes[key] = content_bytes(questions[name])
        down[name] = sizes[key]
    return questions, heard, down


def as_heard(order: Order, content: RecordDict) -> Order:
    """An order as its client hears it: with the loss of a codec that codes answers in its context."""
    if with_context(order.method.codec) is None:
        return order
    heard = records.read_order(content, lambda _, __, task: _memories(order.tasks[task]))
    tasks = {name: replace(task, knowledge=heard.tasks[name].knowledge) for name, task in order.tasks.items()}
    return replace(order, tasks=tasks)


def _memories(task: TaskOrder) -> Memories:
    """What a client makes of an order with; that it has lost nothing is what the order takes for granted."""
    told = updated(None, task.knowledge, 0) if isinstance(task.knowledge, SoftLabels) else None
    return Memories(heard=task.heard, told=told)


@dataclass(frozen=True, slots=True)
class Asked:
    """What clients are asked: messages and orders, and the bytes of both directions so far, by client."""

    questions: dict[str, RecordDict]
    orders: dict[str, Order]
    up: dict[str, int]
    down: dict[str, int]


def replies(asked: Asked, ask: Callable[[Mapping[str, RecordDict]], Iterator[Reply]]) -> Iterator[Reply]:
    """The replies; a client that has lost what its order was coded in the context of is told all of it, once."""
    again: dict[str, Order] = {}
    for reply in ask(asked.questions):
        if reply.message.has_content() and records.is_plea(reply.message.content) and not reply.again:
            asked.up[reply.client] = content_bytes(reply.message.content)
            again[reply.client] = self_contained(asked.orders[reply.client])
        else:
            yield reply
    if again:
        questions, orders, down = write_questions(again)
        asked.orders.update(orders)
        for client, size in down.items():
            asked.down[client] += size
        yield from ask(questions)


def self_contained(order: Order) -> Order:
    """The same order without a word that a client has to remember."""
    return replace(
        order,
        tasks={name: replace(task, heard=None, own=None, recalled=NO_SAMPLES) for name, task in order.tasks.items()},
    )
