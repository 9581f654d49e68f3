"""Replies as objects in a SuperLink: what is missing, broken, forged or grows is its sender's fault alone."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.task_identity import TaskIdentity

from fedstill.common.errors import FedstillError, KnowledgeError, MismatchError, Reason
from fedstill.server import inbox as inboxes
from fedstill.server.inbox import Inbox, Pulled, inbox
from fedstill.server.outbox import push

LARGEST = 100_000


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.server.inbox.time.sleep", lambda _: None)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def question(node: int = 11) -> Message:
    asked = Message(RecordDict({"q": ConfigRecord({"n": node})}), node, "train.round", ttl=60.0)
    asked.metadata.__dict__["_message_id"] = asked.object_id
    return asked


def content(value: int = 1, size: int = 10) -> RecordDict:
    return RecordDict({"x": ConfigRecord({"v": value}), "a": ArrayRecord({"w": Array(np.arange(size))})})


@dataclass
class SuperLink:
    """What lies in a SuperLink: replies that were not named yet, and objects."""

    replies: dict[str, tuple[Any, ObjectTree]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    pulled: int = 0
    refuses: bool = False

    def push(self, reply: Message, *, without: Collection[str] = (), instead: dict[str, bytes] | None = None) -> str:
        """Put a reply there as an honest node does, but for objects that are missing or others; gives its id."""
        identity = reply.object_id
        reply.metadata.__dict__["_message_id"] = identity
        objects = get_all_nested_objects(reply)
        tree = get_object_tree(reply)
        for one, thing in objects.items():
            kind = type(thing).__name__
            self.objects[one] = b"" if kind in without else (instead or {}).get(kind) or thing.deflate()
        proto = message_to_proto(remove_content_from_message(reply))
        self.replies[reply.metadata.reply_to_message_id] = proto, tree
        return identity

    def PullMessages(self, request: PullAppMessagesRequest) -> Any:  # noqa: N802
        found = [self.replies.pop(one) for one in list(request.message_ids) if one in self.replies]
        return SimpleNamespace(
            messages_list=[proto for proto, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request: PullObjectRequest) -> Any:  # noqa: N802
        self.pulled += 1
        there = self.objects.get(request.object_id)
        return SimpleNamespace(
            object_found=there is not None, object_available=bool(there), object_content=there or b""
        )

    def PushMessages(self, request: PushAppMessagesRequest) -> Any:  # noqa: N802
        ids = [message.metadata.message_id for message in request.messages_list]
        wanted = {one.object_id for tree in request.message_object_trees for one in iterate_object_tree(tree)}
        if self.refuses:
            return SimpleNamespace(message_ids=[""] * len(ids), objects_to_push=[], session_id="s")
        return SimpleNamespace(message_ids=ids, objects_to_push=sorted(wanted), session_id="s")

    def PushObject(self, request: PushObjectRequest) -> Any:  # noqa: N802
        if request.object_id in self.objects:
            return SimpleNamespace(stored=False)
        self.objects[request.object_id] = request.object_content
        return SimpleNamespace(stored=True)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


def opened(link: SuperLink, largest: int = LARGEST) -> Inbox:
    return Inbox(link, run=1, node=Node(node_id=1), largest=largest)


def only(found: list[Pulled]) -> FedstillError:
    """The fault of the only reply."""
    (one,) = found
    assert one.fault is not None
    assert one.message.has_error()
    return one.fault


def reason(found: list[Pulled]) -> Reason:
    fault = only(found)
    assert isinstance(fault, KnowledgeError | MismatchError)
    return fault.reason


def test_a_reply_comes_as_it_was_sent_and_is_confirmed() -> None:
    link, asked = SuperLink(), question()
    identity = link.push(Message(content(5), reply_to=asked))

    (found,) = opened(link).pull([asked.metadata.message_id])

    assert (found.question, found.fault) == (asked.metadata.message_id, None)
    assert found.message.metadata.message_id == identity
    assert found.message.content == content(5)
    assert link.confirmed == [identity]


def test_an_error_comes_as_it_was_sent() -> None:
    link, asked = SuperLink(), question()
    link.push(Message(Error(7, "it hurts"), reply_to=asked))

    (found,) = opened(link).pull([asked.metadata.message_id])

    assert found.fault is None
    assert (found.message.error.code, found.message.error.reason) == (7, "it hurts")


def test_what_is_not_all_there_comes_later_and_holds_nobody_up() -> None:
    link, slow, quick = SuperLink(), question(11), question(12)
    ids = [one.metadata.message_id for one in (slow, quick)]
    reply = Message(content(1), reply_to=slow)
    link.push(reply, without=["ArrayChunk"])
    link.push(Message(content(2, size=9), reply_to=quick))
    box = opened(link)

    assert [one.question for one in box.pull(ids)] == [ids[1]]
    assert box.pull(ids[:1]) == []
    link.objects |= {key: thing.deflate() for key, thing in get_all_nested_objects(reply).items()}
    assert [(one.question, one.fault) for one in box.pull(ids[:1])] == [(ids[0], None)]


def test_objects_that_never_came_are_told_when_the_superlink_gives_them_up() -> None:
    link, asked = SuperLink(), question()
    link.push(Message(content(), reply_to=asked), without=["ArrayChunk"])
    box, ids = opened(link), [asked.metadata.message_id]
    assert box.pull(ids) == []
    link.objects.clear()

    assert reason(box.pull(ids)) is Reason.NO_ANSWER


@pytest.mark.parametrize("kind", ["Message", "RecordDict", "ConfigRecord", "Array", "ArrayChunk"])
@pytest.mark.parametrize(
    "instead",
    [
        b"nothing",
        b"\x00",
        b"Message  3\x00abc",
        b"RecordDict  2\x00{}",
        b"ConfigRecord  1\x00\xff",
        b"Array  2\x00{}",
        b'Array  41\x00{"dtype":1,"shape":2,"arraychunk_ids":[0]}',
        b"ArrayChunk  3\x00abc",
        b"Array " + b"0" * 64 + b" 2\x00{}",
    ],
)
def test_objects_that_make_no_message(kind: str, instead: bytes) -> None:
    link, asked, other = SuperLink(), question(11), question(12)
    identity = link.push(Message(content(), reply_to=asked), instead={kind: instead})
    link.push(Message(content(2, size=9), reply_to=other))

    found = opened(link).pull([asked.metadata.message_id, other.metadata.message_id])

    # An empty content is one, too: the gate refuses it.
    whole = (kind, instead[:11]) in {("ArrayChunk", b"ArrayChunk "), ("RecordDict", b"RecordDict ")}
    assert [one.fault is None for one in found] == [whole, True]
    assert identity in link.confirmed
    if found[0].fault is not None:
        assert reason(found[:1]) in {Reason.MALFORMED, Reason.TOO_LARGE}


def test_another_record_in_place_of_the_content() -> None:
    link, asked = SuperLink(), question()
    link.push(
        Message(RecordDict(), reply_to=asked),
        instead={"RecordDict": ConfigRecord({"v": 1}).deflate()},
    )

    assert reason(opened(link).pull([asked.metadata.message_id])) is Reason.MALFORMED


def test_a_message_that_says_it_answers_for_somebody_else() -> None:
    link, own, others = SuperLink(), question(11), question(12)
    forged = Message(content(), reply_to=others)
    forged.metadata.__dict__["_message_id"] = forged.object_id
    link.push(forged)
    proto, tree = link.replies.pop(others.metadata.message_id)
    # What the SuperLink is shown is in order: the node answers its own question.
    proto.metadata.reply_to_message_id = own.metadata.message_id
    proto.metadata.src_node_id = own.metadata.dst_node_id
    link.replies[own.metadata.message_id] = proto, tree

    (found,) = opened(link).pull([own.metadata.message_id, others.metadata.message_id])

    assert found.question == own.metadata.message_id
    assert reason([found]) is Reason.SENDER


def test_more_bytes_than_allowed_are_not_fetched() -> None:
    link, asked = SuperLink(), question()
    link.push(Message(content(size=1_000_000), reply_to=asked))

    assert reason(opened(link).pull([asked.metadata.message_id])) is Reason.TOO_LARGE


def test_a_chunk_that_is_repeated_grows_to_no_more_than_allowed() -> None:
    link, asked = SuperLink(), question()
    array = Array(np.zeros(10_000, np.uint8))
    reply = Message(RecordDict({"a": ArrayRecord({"w": array})}), reply_to=asked)
    (chunk, _), *_ = array.slice_array()
    body = json.dumps({"dtype": "u1", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 10_000_000})
    bomb = f"Array {chunk} {len(body)}\0{body}".encode()
    link.push(reply, instead={"Array": bomb})
    assert len(bomb) > LARGEST  # what is fetched is allowed here; what would be built of it is 100 GB

    assert reason(opened(link, largest=10**9).pull([asked.metadata.message_id])) is Reason.TOO_LARGE


def test_many_objects_are_refused_before_any_is_fetched() -> None:
    link, asked = SuperLink(), question()
    link.push(Message(content(), reply_to=asked))
    _, tree = link.replies[asked.metadata.message_id]
    names = (hashlib.sha256(str(number).encode()).hexdigest() for number in itertools.count())
    tree.children.extend(ObjectTree(object_id=next(names)) for _ in range(inboxes.most_objects(LARGEST)))

    assert reason(opened(link).pull([asked.metadata.message_id])) is Reason.TOO_LARGE
    assert link.pulled == 0


def test_a_message_of_many_objects_takes_several_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "AT_ONCE", 2)
    link, asked = SuperLink(), question()
    link.push(Message(content(), reply_to=asked))
    box, ids = opened(link), [asked.metadata.message_id]

    looks = list(itertools.takewhile(lambda found: not found, (box.pull(ids) for _ in range(10))))

    assert len(looks) == 2  # of six objects: message, content, two records, array, chunk
    assert len(link.confirmed) == 1


def test_another_grid_is_asked_as_it_wants_to_be() -> None:
    asked = question()
    reply = Message(content(), reply_to=asked)
    grid = SimpleNamespace(pull_messages=lambda ids: [reply] if asked.metadata.message_id in ids else [])

    assert inbox(cast(Grid, grid))([asked.metadata.message_id]) == [Pulled(asked.metadata.message_id, reply)]


def failing(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://here")
    return httpx.HTTPStatusError("it fails", request=request, response=httpx.Response(status, request=request))


def test_a_superlink_that_fails_for_a_moment_is_asked_again() -> None:
    link, asked = SuperLink(), question()
    link.push(Message(content(), reply_to=asked))
    faults = iter([failing(500), failing(503)])
    pull = link.PullMessages

    def pull_messages(request: PullAppMessagesRequest) -> Any:
        for fault in faults:
            raise fault
        return pull(request)

    link.PullMessages = pull_messages  # type: ignore[method-assign]

    assert [one.fault for one in opened(link).pull([asked.metadata.message_id])] == [None]


@pytest.mark.parametrize(("status", "patience"), [(401, 60.0), (500, 0.0)])
def test_what_does_not_pass_is_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch, status: int, patience: float) -> None:
    monkeypatch.setattr(inboxes, "PATIENCE", patience)
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise failing(status)

    with pytest.raises(httpx.HTTPStatusError):
        inboxes.patiently(call)
    assert calls == [1]


@pytest.mark.parametrize(("status", "becomes"), [(500, httpx.TransportError), (401, httpx.HTTPStatusError)])
def test_a_heartbeat_takes_a_superlink_that_fails_for_one_that_is_away(status: int, becomes: type[Exception]) -> None:
    def beat(request: object) -> None:
        raise failing(status)

    client = SimpleNamespace(SendTaskHeartbeat=beat)
    inboxes.keep_beating(cast(Grid, SimpleNamespace(_runtime_client=client)))
    inboxes.keep_beating(cast(Grid, SimpleNamespace()))

    with pytest.raises(becomes):
        client.SendTaskHeartbeat(object())


class TestOutbox:
    """Messages to clients."""

    @staticmethod
    def grid(link: SuperLink) -> Grid:
        return cast(Grid, SimpleNamespace(_runtime_client=link, node=Node(node_id=1), run=SimpleNamespace(run_id=1)))

    @staticmethod
    def message(value: int) -> Message:
        return Message(content(value), 11, "train.round", ttl=60.0)

    def test_messages_are_there_with_all_their_objects(self) -> None:
        link, sent = SuperLink(), [self.message(1), self.message(2)]

        taken = push(self.grid(link), sent)

        assert set(taken) == {one.metadata.message_id for one in sent} == {one.object_id for one in sent}
        assert set(link.objects) == {key for one in sent for key in get_all_nested_objects(one)}

    def test_an_object_that_is_not_taken_ends_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        link, sent = SuperLink(), self.message(1)
        link.objects["refused"] = b""

        assert push(self.grid(link), [sent]) == [sent.metadata.message_id]
        assert push(self.grid(link), [sent]) == [sent.metadata.message_id]
        assert "was not taken" in caplog.text

    def test_too_much_for_one_request_is_nothing_taken(self) -> None:
        link = SuperLink()

        def push_messages(request: PushAppMessagesRequest) -> Any:
            raise failing(413)

        link.PushMessages = push_messages  # type: ignore[method-assign]

        assert push(self.grid(link), [self.message(1)]) == []

    def test_what_the_superlink_does_not_take_is_not_named(self) -> None:
        link, sent = SuperLink(refuses=True), self.message(1)
        assert push(self.grid(link), [sent]) == []
