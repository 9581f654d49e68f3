"""Sites as threads of one process, for benchmarks and tests with more of them than a machine has room for.

Each has its own node key and certificate, and speaks to the SuperLink through the same code of Flower's as a SuperNode:
signed requests, heartbeats, messages as objects. What a SuperNode does in a process for each message is done here in
the thread; one computes at a time.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from fedstill.client.app import app
from fedstill.server.deploy.layout import Federation, Site
from fedstill.server.inbox import patiently

COMPUTING = threading.Lock()
"""Held by whoever computes, or makes a message: Flower keeps the task's identity in a global place."""

_SHOWN = threading.local()


@dataclass(slots=True)
class Line:
    """A site's connection, as what answers a message sees it.

    Attributes:
        site: the site's name.
        node: Flower's id of it.
        send, push_object: Flower's own.
    """

    site: str
    node: int
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    push_object: Callable[[int, str, str, bytes], None]

    def reply(self, message: Message) -> bool:
        """Send a reply as a SuperNode does; gives whether the SuperLink took it."""
        message.metadata.__dict__["_message_id"] = message.object_id
        with no_object_id_recompute():
            objects = {key: one.deflate() for key, one in get_all_nested_objects(message).items()}
            return self.push(message, get_object_tree(message), objects)

    def push(self, message: Message, tree: ObjectTree, objects: Mapping[str, bytes]) -> bool:
        """Send a reply that consists of these objects, whatever they are; gives whether the SuperLink took it.

        A SuperLink that fails for a moment is asked again, which a SuperNode does not do: it loses the reply.
        """
        missing, session = patiently(lambda: self.send(message, tree, 0.1))
        for identity in missing & objects.keys():
            patiently(partial(self.push_object, message.metadata.run_id, session, identity, objects[identity]))
        return bool(missing)


Act = Callable[[Line, Message, Context], None]
"""What a site does with a message."""


def honest(line: Line, message: Message, context: Context) -> None:
    """Answer as fedstill's client does."""
    with computing(context):
        try:
            reply = app(message, context)
        except Exception as error:  # as Flower tells it
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
    line.reply(reply)


class computing:  # noqa: N801 # a block
    """Nobody else computes inside the block, and messages are those of this node."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __enter__(self) -> None:
        COMPUTING.acquire()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.context.run_id, self.context.node_id, 1

    def __exit__(self, *_: object) -> None:
        COMPUTING.release()


class Orders:
    """Orders that one of several sites reads for all of them: a SuperLink needs a while for every object of each."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, str], RecordDict] = {}
        self._reading = threading.Lock()

    def message(self, about: Metadata, read: Callable[[], Message]) -> Message:
        """The message of a site, read if nobody has read that step's yet."""
        key = about.run_id, about.message_type, about.group_id
        with self._reading:
            if key not in self._known:
                self._known[key] = read().content
        return make_message(about, RecordDict(dict(self._known[key])))


@dataclass(slots=True)
class LightSite:
    """A site in a thread.

    Attributes:
        federation: whose.
        site: its folder.
        act: what it does with a message.
        config: values for the ClientApp.
        poll: seconds between two questions for messages; a SuperNode takes 3.
        orders: shared with sites that are told the same; None reads every message itself.
        failed: what went wrong on the way.
    """

    federation: Federation
    site: Site
    act: Act = honest
    config: Mapping[str, Any] = field(default_factory=dict)
    poll: float = 3.0
    orders: Orders | None = None
    failed: list[BaseException] = field(default_factory=list)
    _contexts: dict[int, Context] = field(default_factory=dict)

    def live(self, ready: threading.Semaphore, stop: threading.Event) -> None:
        """Take part until it is to stop."""
        _SHOWN.certificate = (self.federation.authority, self.site.certificate, self.site.path / "site.key")
        address, ca = f"localhost:{self.federation.port}", str(self.federation.authority)
        with http_request_response(address, False, ca, _keys(self.site), max_retries=5) as flower:
            node, receive, send, get_run, get_fab, pull_object, push_object, confirm = flower
            line = Line(self.site.name, node, send, push_object)
            ready.release()
            while not stop.is_set():
                try:
                    got = receive()
                    if got is None:
                        stop.wait(self.poll)
                        continue
                    message, tree = got
                    run = message.metadata.run_id
                    if run not in self._contexts:
                        self._contexts[run] = self._context(node, patiently(partial(get_run, run)), get_fab)
                    whole = self._read(message, tree, pull_object)
                    patiently(partial(confirm, run, tree.object_id))
                    self.act(line, whole, self._contexts[run])
                except (Exception, RunNotRunningException) as error:
                    if stop.is_set():
                        return
                    self.failed.append(error)
                    time.sleep(self.poll)

    def _read(self, message: Message, tree: ObjectTree, pull_object: Callable[[int, str], bytes]) -> Message:
        """A message with its content."""

        def read() -> Message:
            names = [one.object_id for one in iterate_object_tree(tree)]
            found = pull_objects(names, lambda name: patiently(partial(pull_object, message.metadata.run_id, name)))
            whole = inflate_object_from_contents(tree.object_id, found)
            assert isinstance(whole, Message)
            whole.metadata.__dict__["_message_id"] = tree.object_id
            return whole

        return read() if self.orders is None else self.orders.message(message.metadata, read)

    def _context(self, node: int, run: Any, get_fab: Callable[[str, int], Any]) -> Context:
        config = get_fused_config_from_fab(patiently(lambda: get_fab(run.fab_hash, run.run_id)).content, run)
        return Context(run.run_id, node, dict(self.config), RecordDict(), config, run.series_id)


class Sites:
    """Light sites that live as long as the block."""

    def __init__(self, sites: Sequence[LightSite], *, within: float = 120) -> None:
        self.sites = sites
        self._within = within
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Sites:
        _show_certificates()
        ready = threading.Semaphore(0)
        for one in self.sites:
            thread = threading.Thread(target=one.live, args=(ready, self._stop), name=one.site.name, daemon=True)
            thread.start()
            self._threads.append(thread)
        deadline = time.monotonic() + self._within
        for one in self.sites:
            if not ready.acquire(timeout=max(deadline - time.monotonic(), 0.01)):
                self._stop.set()
                raise TimeoutError(f"{len(self.sites)} sites, of which one is not there, such as {one.site.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def failed(self) -> dict[str, list[BaseException]]:
        """What went wrong on the way, by site."""
        return {one.site.name: one.failed for one in self.sites if one.failed}


def _keys(site: Site) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    private = serialization.load_ssh_private_key(site.node_key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private, private.public_key()


def _show_certificates() -> None:
    """Let each thread's HTTP clients show the certificate of its site, as `fedstill node` does for its process."""
    before = httpx.Client
    if getattr(before, "shows", False):
        return

    class Client(before):  # type: ignore[valid-type, misc] # httpx's
        """httpx's client, with a certificate."""

        shows = True

        def __init__(self, *, verify: Any = True, **others: Any) -> None:
            shown: tuple[Path, Path, Path] | None = getattr(_SHOWN, "certificate", None)
            if shown is not None and verify:
                verify = ssl.create_default_context(cafile=str(shown[0]))
                verify.load_cert_chain(shown[1], shown[2])
            super().__init__(verify=verify, **others)

    httpx.Client = Client  # type: ignore[misc]
