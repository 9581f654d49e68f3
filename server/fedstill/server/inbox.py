"""Replies out of Flower's SuperLink, each by itself: what cannot be read is its sender's fault, and nobody else's.

A message lies in the SuperLink as objects: itself, its records, arrays, chunks of arrays. Flower's own `pull_messages`
waits up to three minutes for objects that a sender has announced and not sent, ends the run by an exception at objects
that make no message, and builds an array as often as the sender repeats its chunks. Here a reply that is not all there
is looked for again at the next look, objects are counted and their bytes added up before anything is built of them, and
what a message says of itself has to be what the SuperLink has checked. A SuperLink that fails for a moment (its
database is locked, say, while many sites write at once) is asked again.

This and `outbox` are the places that know more of Flower than its public interface: the HTTP client below its
`HttpGrid`. Any other grid is asked in the public way.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx
from flwr.app import Array, Message, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.error_pb2 import Error as ProtoError
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_type_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedstill.common.errors import FedstillError, KnowledgeError, MismatchError, Reason

log = logging.getLogger(__name__)

LARGEST = 2**28
"""Bytes of a message, unless a run says otherwise."""

FEW_OBJECTS, CHUNK = 20, 5 * 2**20
"""`packing` makes six objects of any message, and one more of each further 5 MiB."""

PATIENCE = 60.0
"""Seconds for which a SuperLink that fails is asked again."""

AT_ONCE = 64
"""Objects of one message that are fetched in one look: nobody's reply holds up the others for long."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A reply.

    Attributes:
        question: id of the message that it answers, as the SuperLink has checked it.
        message: as it came; an error without content if it cannot be read.
        fault: why it cannot be read; None if it can.
    """

    question: str
    message: Message
    fault: FedstillError | None = None


T = TypeVar("T")


def patiently(call: Callable[[], T], *, pause: float = 0.5) -> T:
    """What a call to the SuperLink gives, asked again while the SuperLink says that the fault is its own (5xx).

    Such a call has changed nothing there. Flower itself asks again if nobody answers, or a proxy says so.

    Raises:
        httpx.HTTPStatusError: if it says so for longer than `PATIENCE`.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR or time.monotonic() >= end:
                raise
            log.warning("the SuperLink fails (%d); it is asked again", error.response.status_code)
        time.sleep(pause)


def keep_beating(grid: Grid) -> None:
    """Let the heartbeat of Flower's ServerApp outlive a SuperLink that fails for a moment.

    Its thread ends at the first 500, and a minute later the run has failed; at a broken connection it tries again.
    """
    client = getattr(grid, "_runtime_client", None)
    if client is None:
        return
    beat = client.SendTaskHeartbeat

    def patient(request: Any) -> Any:
        try:
            return beat(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            raise httpx.TransportError(str(error)) from error

    client.SendTaskHeartbeat = patient


Pull = Callable[[Collection[str]], list[Pulled]]
"""Replies that are there to the questions of those ids."""


class Client(Protocol):
    """The part of Flower's HTTP client that is used here."""

    def PullMessages(self, request: PullAppMessagesRequest) -> Any:  # noqa: N802 # Flower's name
        """Replies and the trees of their objects."""

    def PullObject(self, request: PullObjectRequest) -> Any:  # noqa: N802
        """An object's bytes."""

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> Any:  # noqa: N802
        """Let the SuperLink forget a message."""


def inbox(grid: Grid, *, largest: int = LARGEST) -> Pull:
    """How replies are pulled from a grid.

    Args:
        grid: Flower's.
        largest: bytes of a message.
    """
    client = getattr(grid, "_runtime_client", None)
    if client is None:
        return lambda ids: [Pulled(one.metadata.reply_to_message_id, one) for one in grid.pull_messages(list(ids))]
    return Inbox(client, run=grid.run.run_id, node=getattr(grid, "node", Node()), largest=largest).pull


@dataclass(slots=True)
class _Pending:
    """A reply of which something is still to come."""

    proto: ProtoMessage
    missing: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class Inbox:
    """Replies in a SuperLink, and those of which a part is here.

    Attributes:
        client: Flower's.
        run: Flower's id of the run.
        node: as whom the ServerApp asks.
        largest: bytes of a message.
    """

    def __init__(self, client: Client, *, run: int, node: Node, largest: int) -> None:
        self.client = client
        self.run = run
        self.node = node
        self.largest = largest
        self._pending: dict[str, _Pending] = {}

    def pull(self, ids: Collection[str]) -> list[Pulled]:
        """Replies to those questions that are all here by now."""
        fresh = [one for one in ids if one not in self._pending]  # the SuperLink forgets a reply that it has named
        found: list[Pulled] = []
        if fresh:
            response = patiently(lambda: self.client.PullMessages(PullAppMessagesRequest(message_ids=fresh)))
            for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                found += self._begin(proto, tree)
        for question in list(self._pending):
            found += self._go_on(question)
        return found

    def _begin(self, proto: ProtoMessage, tree: ObjectTree) -> Iterable[Pulled]:
        missing = list(dict.fromkeys(one.object_id for one in iterate_object_tree(tree)))
        pending = _Pending(proto, missing)
        most = most_objects(self.largest)
        if len(missing) > most:
            told = f"a message of {len(missing)} objects"
            return self._end(pending, KnowledgeError(told, f"expected at most {most}", reason=Reason.TOO_LARGE))
        self._pending[proto.metadata.reply_to_message_id] = pending
        return []

    def _go_on(self, question: str) -> list[Pulled]:
        """Fetch what is there of a reply."""
        pending = self._pending[question]
        try:
            for _ in range(AT_ONCE):
                if not pending.missing:
                    break
                if not self._fetch(pending):
                    return []
            if pending.missing:
                return []
            message = read_message(pending.proto, pending.contents, self.largest)
        except FedstillError as error:
            del self._pending[question]
            return self._end(pending, error)
        del self._pending[question]
        return self._end(pending, None, message)

    def _fetch(self, pending: _Pending) -> bool:
        """Fetch the next object, if it is there."""
        identity = pending.missing[0]
        request = PullObjectRequest(node=self.node, run_id=self.run, object_id=identity)
        response = patiently(lambda: self.client.PullObject(request))
        if not response.object_found:
            raise KnowledgeError(
                f"object {identity[:12]} of a message", "was announced, and never came", reason=Reason.NO_ANSWER
            )
        if not response.object_available:
            return False
        pending.size += len(response.object_content)
        check_bytes(pending.size, self.largest)
        pending.contents[identity] = response.object_content
        del pending.missing[0]
        return True

    def _end(self, pending: _Pending, fault: FedstillError | None, message: Message | None = None) -> list[Pulled]:
        identity = pending.proto.metadata.message_id
        received = ConfirmMessageReceivedRequest(node=self.node, run_id=self.run, message_object_id=identity)
        patiently(lambda: self.client.ConfirmMessageReceived(received))
        if message is None:
            error = ProtoError(code=0, reason=str(fault))
            message = message_from_proto(ProtoMessage(metadata=pending.proto.metadata, error=error))
        return [Pulled(pending.proto.metadata.reply_to_message_id, message, fault)]


def read_message(proto: ProtoMessage, contents: Mapping[str, bytes], largest: int) -> Message:
    """A message from its objects.

    Args:
        proto: what the SuperLink knows of it, and has checked.
        contents: objects by id.
        largest: bytes that may become of them.

    Raises:
        KnowledgeError: if they make no message, or too large a one.
        MismatchError: if it says something else of itself than the SuperLink.
    """
    identity = proto.metadata.message_id
    try:
        check_bytes(sum(array_bytes(content, contents) for content in contents.values()), largest)
        message = inflate_object_from_contents(identity, dict(contents))
        if not isinstance(message, Message):
            raise TypeError(f"a {type(message).__name__} in place of a message")
        if message.has_content() and not isinstance(message.content, RecordDict):
            raise TypeError(f"a {type(message.content).__name__} in place of a message's content")
    except FedstillError:
        raise
    except Exception as error:  # the border: whatever a stranger's objects bring about
        log.debug("objects that make no message", exc_info=True)
        raise KnowledgeError(
            f"objects of {len(contents)} ids", f"expected a message: {type(error).__name__}: {error}"
        ) from None
    told, checked = message.metadata, proto.metadata
    # An error is told by the SuperLink itself, too, of which it does not say all of this.
    if message.has_content() and (told.reply_to_message_id, told.src_node_id, told.run_id) != (
        checked.reply_to_message_id,
        checked.src_node_id,
        checked.run_id,
    ):
        raise MismatchError(
            f"a message of node {told.src_node_id}",
            f"expected one of node {checked.src_node_id}, to what that was asked",
            reason=Reason.SENDER,
        )
    told.__dict__["_message_id"] = identity  # as Flower does: an object does not hold its own id
    return message


def most_objects(largest: int) -> int:
    """Objects that a message of so many bytes may have. The door lets few more be announced."""
    return FEW_OBJECTS + math.ceil(largest / CHUNK)


def array_bytes(content: bytes, contents: Mapping[str, bytes]) -> int:
    """Bytes that an array takes once it is built; 0 for an object of another kind."""
    if get_object_type_from_object_content(content) != Array.__qualname__:
        return 0
    children = get_object_children_ids_from_object_content(content)
    sizes = [len(contents[one]) for one in children]
    return sum(sizes[place] for place in json.loads(get_object_body(content, Array))["arraychunk_ids"])


def check_bytes(size: int, largest: int) -> None:
    """Refuse too many bytes.

    Raises:
        KnowledgeError: with the reason "too-large".
    """
    if size > largest:
        raise KnowledgeError(
            f"{size} bytes",
            f"expected at most {largest}",
            "raise rounds.largest-message if that is right",
            reason=Reason.TOO_LARGE,
        )
