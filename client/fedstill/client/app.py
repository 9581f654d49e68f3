"""The Flower ClientApp: `query.describe`, `train.alone`, `train.round`, `train.finish`.

What a client does not do it says so in a reply, with its reason; only what nobody foresaw is an error for Flower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedstill.client.copies import keep_copy
from fedstill.client.guard import Guard
from fedstill.client.ledger import answer_digest, order_digest
from fedstill.client.node import Node, is_site, node_of
from fedstill.client.work import Worker, recall
from fedstill.common import introduction, records
from fedstill.common.algorithm import Algorithm
from fedstill.common.contents import named
from fedstill.common.errors import (
    ConfigError,
    FedstillError,
    KnowledgeError,
    MismatchError,
    Reason,
    RefusalError,
    StorageError,
    UnsupportedError,
)
from fedstill.common.messages import Answer, Order, Refusal
from fedstill.common.packing import HEAD, content_bytes, packed
from fedstill.common.scenario import TaskPlan
from fedstill.common.task import Task
from fedstill.common.wire import check_protocol

log = logging.getLogger(__name__)

_Do = Callable[[Worker, Order], Answer]


def client_app(
    *,
    task: Task | TaskPlan | None = None,
    model: str = "",
    algorithms: Sequence[type[Algorithm]] = (),
    guard: Guard | None = None,
) -> ClientApp:
    """A ClientApp that takes part in distillation.

    Args:
        task: what the client learns; None takes the tasks of the run's scenario. A node with a client.toml learns what
            that says.
        model: architecture of its student, when `task` is given.
        algorithms: methods of your own that are not installed as plug-ins.
        guard: what may leave the client; None for the usual, to which FEDSTILL_RELEASE may add. A client.toml cannot
            let out more.
    """
    app = ClientApp()
    client = _Client(task, model, guard, {kind.name: kind for kind in algorithms})

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return client.describe(message, context)

    @app.train("alone")
    def alone(message: Message, context: Context) -> Message:
        return client.work(message, context, "alone", Worker.alone)

    @app.train("round")
    def play(message: Message, context: Context) -> Message:
        return client.work(message, context, "round", Worker.round)

    @app.train("finish")
    def finish(message: Message, context: Context) -> Message:
        return client.work(message, context, "finish", Worker.finish)

    return app


@dataclass(frozen=True, slots=True)
class _Client:
    """What `client_app` was given, and how it replies to a message."""

    task: Task | TaskPlan | None
    model: str
    guard: Guard | None
    own: Mapping[str, type[Algorithm]]

    def describe(self, message: Message, context: Context) -> Message:
        def described(node: Node) -> RecordDict:
            question = introduction.read_question(message.content)
            worker = Worker(node.holdings, node.store(""), node.guard, self.own)
            return packed(introduction.write_description(worker.describe(question)))

        return self._reply(message, context, described)

    def work(self, message: Message, context: Context, kind: str, do: _Do) -> Message:
        def done(node: Node) -> RecordDict:
            with node.alone():
                order = _order(message, node)
                if order is None:
                    return records.write_plea()
                worker = Worker(node.holdings, node.store(order.run), node.guard, self.own)
                content = _answered(node, order, f"{kind} {order.round}", worker, do)
                # Only a pointer: Flower loses a large state silently, and any state with the process.
                context.state["student"] = ConfigRecord(
                    {"run": order.run, "version": order.round, "digest": worker.store.digest(order.round)}
                )
            told = (order.run, kind, order.round, context.node_id, content_bytes(content))
            log.info("run %s, %s %d, node %d: answered in %d bytes", *told)
            return content

        return self._reply(message, context, done)

    def _reply(self, message: Message, context: Context, content: Callable[[Node], RecordDict]) -> Message:
        try:
            check_protocol(message.content)
            with node_of(context, task=self.task, model=self.model, guard=self.guard) as node:
                return Message(content(node), reply_to=message)
        except Exception as error:  # the border: what is wrong is told, but not more of a site than has to be
            refusal = _refusal(error, site=is_site(context))
            if refusal is None:
                raise
            asked = (_asked(message), context.node_id, refusal.reason)
            log.warning("%s, node %d: %s: %s", *asked, error, exc_info=not isinstance(error, FedstillError))
            return Message(introduction.write_refusal(refusal), reply_to=message)


def _order(message: Message, node: Node) -> Order | None:
    """What is asked; None if the client has lost what it was coded in the context of."""
    try:
        return records.read_order(message.content, lambda run, version, name: recall(node.store(run), version, name))
    except KnowledgeError as error:
        if error.reason is not Reason.CONTEXT:
            raise
        return None


def _answered(node: Node, order: Order, step: str, worker: Worker, do: _Do) -> RecordDict:
    """Work on an order and let the answer go, as far as policy and ledger allow it."""
    ledger = node.ledger
    if ledger is not None:
        node.guard.check_order(order, node.holdings)
        ledger.begin(order.run, step, order_digest(order), limit=node.guard.policy.rounds_per_day)
    answer = node.guard.lets_out(do(worker, order))
    content = packed(records.write_answer(answer, order))
    node.guard.check_size(content_bytes(content))
    if ledger is not None:
        ledger.answered(order.run, step, answer_digest(answer))
    if node.site is not None and node.site.copies:
        keep_copy(node.root / "sent", step, answer)
    return content


def _refusal(error: Exception, *, site: bool) -> Refusal | None:
    """What the server is told of an error; None if Flower is to tell it, which it does for clients of simulated runs.

    Of a site it hears no path, and no word of an error that nobody foresaw: it could quote private data.
    """
    known = isinstance(error, KnowledgeError | MismatchError | RefusalError)
    reason = error.reason if isinstance(error, KnowledgeError | MismatchError | RefusalError) else Reason.CLIENT_ERROR
    if isinstance(error, StorageError):
        known, reason = True, Reason.STORAGE
    if not site:
        return Refusal(reason, str(error)) if known else None
    if reason is Reason.STORAGE:
        return Refusal(reason, "the site's store cannot be used: its own log says why")
    if reason is Reason.BUSY:
        return Refusal(reason, "another process works in the site's store: its own log says which")
    if known or isinstance(error, ConfigError | UnsupportedError):
        return Refusal(reason, str(error))
    return Refusal(reason, f"{type(error).__name__}: the site's own log says more")


def _asked(message: Message) -> str:
    """What is asked, in words, as far as the message says so."""
    head = named(message.content, HEAD, ConfigRecord)
    return f"run {head.get('run', '-')!s}, {message.metadata.message_type} {message.metadata.group_id or '-'}"


app = client_app()
