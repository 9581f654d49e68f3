"""The local engine: a Flower `Grid` that runs the clients here, one after the other or in worker processes. No Ray.

Every message makes the round trip through Flower's own serialisation, so that nothing passes here which fails in
deployment, and no two clients share an object. A node works on one message at a time, and what it raises comes back as
an error reply, as Flower does it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from typing import Any, Protocol
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ContextProto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedstill.common.errors import ConfigError, UnsupportedError

_FIRST_NODE = SUPERLINK_NODE_ID + 1
_LOOK = 0.5  # seconds that a look for replies waits for a worker


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One message on its way through a client.

    Attributes:
        message: as pushed; it is serialised when its turn comes, because a thousand of them share their content.
        tries: how often the worker process died under it.
    """

    message: Message
    tries: int = 0

    @property
    def identity(self) -> str:
        return str(self.message.metadata.message_id)

    @property
    def node(self) -> int:
        return int(self.message.metadata.dst_node_id)


class _Runner(Protocol):
    """Where clients work."""

    def submit(self, jobs: Sequence[_Job]) -> None:
        """Take jobs. A node's earlier one that has not begun has failed; its reply that nobody fetched is forgotten."""

    def finished(self, wanted: set[str]) -> list[Message]:
        """Replies to some of the wanted messages; waits a little if there is none."""

    def close(self) -> None:
        """End all processes."""


class LocalGrid(Grid):
    """Flower's `Grid` over clients on this machine.

    Args:
        app: the ClientApp, or its import path "package.module:attribute" (worker processes need the latter).
        clients: number of nodes; a node's `partition-id` is its number.
        run_config: what clients read as `context.run_config`.
        node_config: added to every node's own.
        node_configs: added to each node's own, in the order of their numbers; () for nothing.
        workers: processes; 1 runs all clients in this one.

    Raises:
        ConfigError: if the app cannot be imported, or `workers` is below 1.
        UnsupportedError: if worker processes are asked for with an app that they cannot import.
    """

    def __init__(
        self,
        app: ClientApp | str,
        *,
        clients: int,
        run_config: Mapping[str, Any] = {},
        node_config: Mapping[str, Any] = {},
        node_configs: Sequence[Mapping[str, Any]] = (),
        workers: int = 1,
    ) -> None:
        if workers < 1:
            raise ConfigError(f"workers={workers}", "expected >= 1")
        if workers > 1 and not isinstance(app, str):
            raise UnsupportedError(
                f"a ClientApp object with workers={workers}",
                "expected an import path",
                'name it "package.module:attribute", so that worker processes can import it',
            )
        # Loaded here too when workers load it: an app that is not there is told at once, not by processes that die.
        loaded = load_app(app) if isinstance(app, str) else app
        self._run = Run.create_empty(run_id=1)
        # Flower's Message asks this for its sender; its own runtimes set it when they start a process.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
        own = node_configs or [{}] * clients
        contexts = {
            number + _FIRST_NODE: Context(
                run_id=1,
                node_id=number + _FIRST_NODE,
                node_config={"partition-id": number, "num-partitions": clients, **node_config, **own[number]},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for number in range(clients)
        }
        self._nodes = tuple(contexts)
        self._runner: _Runner
        if workers == 1:
            self._runner = _Here(loaded, contexts)
        else:
            self._runner = _Pool(str(app), contexts, workers)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their nodes; gives their ids."""
        jobs = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            jobs.append(_Job(message))
        self._runner.submit(jobs)
        return [job.identity for job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are ready; in this process a client works while one looks."""
        return self._runner.finished(set(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull the replies until all are here or the timeout has passed."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def close(self) -> None:
        """End all worker processes."""
        self._runner.close()


class _Here:
    """Clients work in this process, one after the other."""

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        self._app = app
        self._contexts = contexts
        self._jobs: dict[int, _Job] = {}
        self._ready: list[Message] = []

    def submit(self, jobs: Sequence[_Job]) -> None:
        self._ready = [*_waiting(self._ready, jobs), *_enqueue(self._jobs, jobs)]

    def finished(self, wanted: set[str]) -> list[Message]:
        found, self._ready = _sorted_out(self._ready, wanted)
        job = next((job for job in self._jobs.values() if job.identity in wanted), None)
        if found or job is None:
            return found
        del self._jobs[job.node]
        question = message_to_proto(job.message).SerializeToString()
        return [_message(work(self._app, question, self._contexts[job.node]))]

    def close(self) -> None:
        self._jobs.clear()


class _Pool:
    """Clients work in processes.

    A process that dies takes the whole pool with it, and its neighbours' work. Every job that was under way is then
    tried again alone; the one under which the process dies again is the culprit, and its client has failed. A process
    may also die with no job at all: that is noticed when the next one is handed over.
    """

    def __init__(self, app: str, contexts: dict[int, Context], workers: int) -> None:
        self._app = app
        self._contexts = {node: context_to_proto(context).SerializeToString() for node, context in contexts.items()}
        self._workers = workers
        self._queue: dict[int, _Job] = {}
        self._active: dict[Future[tuple[bytes, bytes]], _Job] = {}
        self._ready: list[Message] = []
        self._pool = self._new_pool()

    def submit(self, jobs: Sequence[_Job]) -> None:
        self._ready = [*_waiting(self._ready, jobs), *_enqueue(self._queue, jobs)]
        self._fill()

    def finished(self, wanted: set[str]) -> list[Message]:
        done, _ = wait(self._active, timeout=_LOOK, return_when=FIRST_COMPLETED)
        broken = []
        for future in done:
            job = self._active.pop(future)
            try:
                reply, self._contexts[job.node] = future.result()
                self._ready.append(_message(reply))
            except BrokenProcessPool:
                broken.append(job)
        if broken:
            self._mourn([*broken, *self._active.values()])
        self._fill()
        found, self._ready = _sorted_out(self._ready, wanted)
        return found

    def close(self) -> None:
        self._queue.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while self._queue:
            busy = {job.node for job in self._active.values()}
            job = next((job for job in self._queue.values() if job.node not in busy), None)
            if job is None or len(self._active) >= self._workers:
                return
            if self._active and (job.tries or any(other.tries for other in self._active.values())):
                return
            question = message_to_proto(job.message).SerializeToString()
            try:
                future = self._pool.submit(_work_on_bytes, question, self._contexts[job.node])
            except BrokenProcessPool:
                self._mourn(list(self._active.values()))
                continue
            del self._queue[job.node]
            self._active[future] = job

    def _mourn(self, jobs: list[_Job]) -> None:
        self._active.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()
        for job in jobs:
            if job.tries or job.node in self._queue:
                error = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason="the client's process died")
                self._ready.append(Message(error, reply_to=job.message))
            else:
                self._queue = {job.node: replace(job, tries=1), **self._queue}

    def _new_pool(self) -> ProcessPoolExecutor:
        # spawn: a fork would copy torch's threads in an undefined state.
        return ProcessPoolExecutor(
            self._workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(self._app, sys.path)
        )


def work(app: ClientApp, question: bytes, context: Context) -> bytes:
    """A client's reply to a message, both as Flower serialises them.

    An exception becomes an error reply, as Flower's runtimes make it; so does a reply that cannot be serialised.
    """
    message = _message(question)
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message")
        return bytes(message_to_proto(reply).SerializeToString())
    except (Exception, SystemExit) as error:
        return _error(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, error)


def _sorted_out(replies: list[Message], wanted: set[str]) -> tuple[list[Message], list[Message]]:
    """Those that answer a wanted message, and the others."""
    found = [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]
    return found, [reply for reply in replies if reply.metadata.reply_to_message_id not in wanted]


def _waiting(replies: list[Message], jobs: Sequence[_Job]) -> list[Message]:
    """Replies of clients that are asked nothing new: they may still be had, and no client's pile up."""
    asked = {job.node for job in jobs}
    return [reply for reply in replies if reply.metadata.src_node_id not in asked]


def _enqueue(queue: dict[int, _Job], jobs: Sequence[_Job]) -> list[Message]:
    """Put jobs at the end of a queue by node; gives error replies to those that they push out."""
    reason = "a later message came before this one was begun"
    failed = []
    for job in jobs:
        if job.node in queue:
            error = Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason=reason)
            failed.append(Message(error, reply_to=queue.pop(job.node).message))
        queue[job.node] = job
    return failed


def load_app(path: str) -> ClientApp:
    """A ClientApp by its import path "package.module:attribute".

    Raises:
        ConfigError: if there is none.
    """
    module, _, attribute = path.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"ClientApp '{path}'", f"cannot be imported: {error}", "name it module:attribute") from None
    if not isinstance(app, ClientApp):
        raise ConfigError(f"'{path}' is a {type(app).__name__}", "expected a ClientApp")
    return app


def _message(content: bytes) -> Message:
    return message_from_proto(MessageProto.FromString(content))


def _error(question: Message, code: int, error: BaseException) -> bytes:
    reason = "".join(traceback.format_exception_only(error)).strip()
    return bytes(message_to_proto(Message(Error(code=code, reason=reason), reply_to=question)).SerializeToString())


_worker_app: list[ClientApp] = []  # of a worker process; set once when it begins


def _begin_worker(app: str, path: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, without a traceback
    parent = parent_process()
    if parent is not None:
        # A worker's queue stays open when its parent is killed: without this it would wait for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.path[:] = path
    _worker_app.append(load_app(app))


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work_on_bytes(question: bytes, context: bytes) -> tuple[bytes, bytes]:
    own = context_from_proto(ContextProto.FromString(context))
    reply = work(_worker_app[0], question, own)
    try:
        return reply, context_to_proto(own).SerializeToString()
    except Exception as error:  # whatever the client put into its context
        return _error(_message(question), ErrorCode.CLIENT_APP_RAISED_EXCEPTION, error), context
