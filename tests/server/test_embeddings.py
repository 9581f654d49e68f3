"""What is about private examples, between the sides: who lets it out, what is admitted, and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata as ProtoMetadata

from fedstill.client.guard import RELEASE_VARIABLE
from fedstill.common import records
from fedstill.common.embeddings import Embeddings
from fedstill.common.errors import QuorumError, Reason, UnsupportedError
from fedstill.common.introduction import read_refusal
from fedstill.common.learning import Training
from fedstill.common.messages import ROUND, Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.scenario import codec_from
from fedstill.common.sides import ClientInfo, embeddings_of
from fedstill.common.task import TaskSpec
from fedstill.server.admission import Gate, Rejection, TaskGate

Play = Callable[..., Any]

SPACE, OWN = ("cat", "dog", "cow"), ("cat", "cow")
METADATA = ProtoMetadata(message_type="train.round", ttl=60)
SAID = Embeddings(
    classes=OWN,
    logits=np.array([[1, 2], [0.5, -1]], np.float32),
    features=np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    labels=np.array([0, 1]),
    round=4,
)


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RELEASE_VARIABLE, "embeddings")


def order(codec: str = "raw") -> Order:
    tasks = {"pets": TaskOrder("digest", np.array([0]))}
    return Order("run", 4, 10, 1, 1, 3, Method("fedgkt", {}, Training(), codec_from(codec)), tasks)


def admitted(said: Embeddings, *, codec: str = "raw", spoil: dict[str, Any] | None = None, examples: int = 2) -> Any:
    asked = order(codec)
    info = ClientInfo("client-0", "mlp-small", 100, 60, OWN)
    spec = TaskSpec("pets", "categorical", "image", SPACE, (1, 8, 8))
    gate = TaskGate(spec, "embeddings", "digest", {}, {"client-0": info}, features=3, predictions=True)
    part = TaskAnswer("digest", examples, said)
    content = records.write_answer(Answer("client-0", "run", 4, 1, 3, {"pets": part}), asked)
    for name, array in (spoil or {}).items():
        content.array_records["knowledge.pets"][name] = Array(array)
    # As Flower delivers it: real bytes in between.
    proto = ProtoMessage(metadata=METADATA, content=recorddict_to_proto(content))
    message = message_from_proto(ProtoMessage.FromString(proto.SerializeToString()))
    return Gate("client-0", asked, {"pets": gate}, largest=10**6).admit(message)


@pytest.mark.parametrize("codec", ["raw", "fp16", "topk", "int8"])
def test_what_was_asked_for_is_admitted(codec: str) -> None:
    answer = admitted(SAID, codec=codec)

    assert isinstance(answer, Answer)
    came = embeddings_of(answer.tasks["pets"].knowledge)
    assert came.header() == SAID.header()
    for name in ("logits", "features", "labels"):
        np.testing.assert_array_equal(getattr(came, name), getattr(SAID, name))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"features": np.zeros((2, 4), np.float32)}, Reason.SHAPE),
        ({"features": np.zeros((2, 0), np.float32)}, Reason.SHAPE),
        ({"labels": np.zeros(0, np.int64)}, Reason.SHAPE),
        ({"classes": ("cat", "dog")}, Reason.CLASSES),
        ({"round": 3}, Reason.STALE),
    ],
)
def test_what_was_not_asked_for_is_refused(change: dict[str, Any], expected: Reason) -> None:
    found = admitted(replace(SAID, **change))
    assert isinstance(found, Rejection)
    assert found.reason is expected


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ({"features": np.full((2, 3), np.nan, np.float32)}, Reason.NOT_FINITE),
        ({"features": np.full((2, 3), 1e30, np.float32)}, Reason.RANGE),
        ({"features": np.zeros((2, 3))}, Reason.TYPE),
        ({"logits": np.zeros((3, 2), np.float32)}, Reason.SHAPE),
        ({"labels": np.array([0, 7], np.uint8)}, Reason.RANGE),
        ({"labels": np.array([0.0, 1.0])}, Reason.TYPE),
    ],
)
def test_what_a_stranger_sends_is_refused(spoil: dict[str, Any], expected: Reason) -> None:
    found = admitted(SAID, spoil=spoil)
    assert isinstance(found, Rejection)
    assert found.reason is expected


def test_more_examples_than_it_has_are_refused() -> None:
    found = admitted(SAID, examples=1)
    assert isinstance(found, Rejection)
    assert found.reason is Reason.RANGE
    assert "embeddings of 2 examples" in found.detail


# Runs ----------------------------------------------------------------------------------------------------------------


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "algorithm": {"name": "fedgkt"},
        "rounds.count": 3,
        "alone": False,
        "tasks.wine.models": ["mlp-small"],
        **changes,
    }


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


def test_nothing_of_it_leaves_unless_the_owner_says_so(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RELEASE_VARIABLE)
    left: list[bool] = []

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        left.append(message.metadata.message_type == ROUND and read_refusal(reply.content) is None)
        return reply

    with pytest.raises(QuorumError, match=r"4 refused .*set FEDSTILL_RELEASE=embeddings where the client runs"):
        play_small(plan(), tamper=tamper)
    assert not any(left)


@pytest.mark.parametrize("codec", ["raw", "fp16"])
def test_everybody_hears_about_its_own_examples(codec: str, play_small: Play) -> None:
    played = play_small(plan(codec=codec))

    assert [record["rejected"] for record in played.records] == [[]] * 5
    roster = played.folder.config()["roster"]
    for state in played.states[1:]:
        task = state.tasks["wine"]
        assert task.knowledge is None
        counts = {who: len(embeddings_of(told).logits) for who, told in task.personal.items()}
        assert counts == {who: client["wine"]["examples"] for who, client in roster.items()}


def test_with_absent_clients_and_own_classes(play_small: Play) -> None:
    partition = {"kind": "pathological", "classes": 2, "minimum": 1}
    changes = {"clients.cohort": 0.5, "tasks.wine.label-space": "own", "tasks.wine.partition": partition}

    played = play_small(plan(**changes))

    assert [record["rejected"] for record in played.records] == [[]] * 5
    asked = [set(record["accepted"]) for record in played.records[1:4]]
    personal = [state.tasks["wine"].personal for state in played.states[1:4]]
    assert [set(one) for one in personal] == [asked[0], asked[0] | asked[1], asked[0] | asked[1] | asked[2]]
    assert all(embeddings_of(told).logits.shape[1] == 2 for told in personal[-1].values())


def test_an_interrupted_run_goes_on_with_the_same_numbers(play_small: Play) -> None:
    changes = plan(**{"clients.cohort": 0.75, "clients.quorum": 1.0, "rounds.attempts": 1})
    down = True

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if down and message.metadata.message_type == ROUND and round_of(message) == 3:
            raise RuntimeError("no power")
        return inner(message, context)

    clean = play_small(changes, name="not")  # as long as "run", for bytes are compared
    with pytest.raises(QuorumError):
        play_small(changes, tamper=tamper)
    down = False
    resumed = play_small(changes)

    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]
    assert [record["bytes"] for record in resumed.records] == [record["bytes"] for record in clean.records]
    one, other = (played.states[-1].tasks["wine"].personal for played in (resumed, clean))
    assert one.keys() == other.keys() != set()
    assert all(
        np.array_equal(embeddings_of(told).logits, embeddings_of(other[who]).logits) for who, told in one.items()
    )


def test_models_of_other_widths_do_not_begin(play_small: Play) -> None:
    with pytest.raises(UnsupportedError, match=r"last layers read \[64, 200\] features: expected one width on all"):
        play_small(plan(**{"tasks.wine.models": ["mlp-small", "mlp-medium"]}))
    with pytest.raises(UnsupportedError, match="choose a model with hidden layers"):
        play_small(plan(**{"tasks.wine.models": ["linear-softmax"]}), name="linear")
