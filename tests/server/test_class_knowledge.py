"""Prototypes between the sides: what is admitted; runs with absent clients, own classes, codecs and interruptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata as ProtoMetadata

from fedstill.common import records
from fedstill.common.errors import QuorumError, Reason, UnsupportedError
from fedstill.common.knowledge import Prototypes
from fedstill.common.learning import Training
from fedstill.common.messages import ROUND, Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.prototypes import predictions_over
from fedstill.common.scenario import codec_from
from fedstill.common.sides import ClientInfo
from fedstill.common.task import TaskSpec
from fedstill.server import checkpoint
from fedstill.server.admission import Gate, Rejection, TaskGate
from fedstill.server.state import RunState, TaskState

Play = Callable[..., Any]

METHODS = ("fd", "fedproto", "fedhkd")
SPACE, OWN = ("cat", "dog", "cow"), ("cat", "cow")
SAMPLES = np.array([2, 5])
METADATA = ProtoMetadata(message_type="train.round", ttl=60)
TOLD = Prototypes(
    classes=OWN,
    counts=np.array([40, 20]),
    features=np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    predictions=np.array([[0.75, 0.25], [0, 1]], np.float32),
    columns=OWN,
    round=4,
)
NO_FEATURES: Any = {"features": np.zeros((2, 0), np.float32)}
NO_PREDICTIONS: Any = {"predictions": np.zeros((2, 0), np.float32), "columns": ()}


def order(codec: str = "raw") -> Order:
    tasks = {"pets": TaskOrder("digest", SAMPLES)}
    return Order("run", 4, 10, 1, 1, 3, Method("fedhkd", {}, Training(), codec_from(codec)), tasks)


def admitted(told: Prototypes, *, codec: str = "raw", spoil: dict[str, Any] | None = None, **gate: Any) -> Any:
    asked = order(codec)
    info = ClientInfo("client-0", "mlp-small", 100, 60, OWN)
    spec = TaskSpec("pets", "categorical", "image", SPACE, (1, 8, 8))
    wanted = {"features": 3, "predictions": True} | gate
    door = Gate(
        "client-0",
        asked,
        {"pets": TaskGate(spec, "prototypes", "digest", {}, {"client-0": info}, **wanted)},
        largest=10**6,
    )
    content = records.write_answer(Answer("client-0", "run", 4, 1, 3, {"pets": TaskAnswer("digest", 60, told)}), asked)
    for name, array in (spoil or {}).items():
        content.array_records["knowledge.pets"][name] = Array(array)
    # As Flower delivers it: real bytes in between.
    proto = ProtoMessage(metadata=METADATA, content=recorddict_to_proto(content))
    return door.admit(message_from_proto(ProtoMessage.FromString(proto.SerializeToString())))


def reason(*args: Any, **options: Any) -> Reason:
    found = admitted(*args, **options)
    assert isinstance(found, Rejection)
    return found.reason


@pytest.mark.parametrize("codec", ["raw", "fp16", "topk"])
@pytest.mark.parametrize(
    ("change", "gate"),
    [({}, {}), (NO_FEATURES, {"features": 0}), (NO_PREDICTIONS, {"predictions": False})],
)
def test_what_was_asked_for_is_admitted(codec: str, change: dict[str, Any], gate: dict[str, Any]) -> None:
    sent = replace(TOLD, **change)
    answer = admitted(sent, codec=codec, **gate)
    assert isinstance(answer, Answer)
    came = answer.tasks["pets"].knowledge
    assert isinstance(came, Prototypes)
    assert came.header() == sent.header()
    for name, array in sent.arrays().items():
        np.testing.assert_array_equal(came.arrays()[name], array)  # numbers that half precision has, too


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (NO_FEATURES, Reason.SHAPE),
        (NO_PREDICTIONS, Reason.SHAPE),
        ({"features": np.zeros((2, 4), np.float32)}, Reason.SHAPE),
        ({"classes": ("cat", "dog")}, Reason.CLASSES),
        ({"columns": ("cat", "dog")}, Reason.CLASSES),
        ({"counts": np.array([40, 21])}, Reason.RANGE),
        ({"round": 3}, Reason.STALE),
    ],
)
def test_what_was_not_asked_for_is_refused(change: dict[str, Any], expected: Reason) -> None:
    assert reason(replace(TOLD, **change)) is expected


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ({"features": np.full((2, 3), np.nan, np.float32)}, Reason.NOT_FINITE),
        ({"features": np.full((2, 3), 1e30, np.float32)}, Reason.RANGE),
        ({"features": np.array(1, np.float32)}, Reason.SHAPE),
        ({"features": np.zeros((2, 3))}, Reason.TYPE),
        ({"predictions": np.full((2, 2), 0.9, np.float32)}, Reason.RANGE),
        ({"predictions": np.zeros((2, 3), np.float32)}, Reason.SHAPE),
        ({"counts": np.array([-1, 1])}, Reason.RANGE),
        ({"counts": np.array([2**62, 2**62])}, Reason.RANGE),
        ({"counts": np.array(5)}, Reason.SHAPE),
        ({"counts": np.array([1.0, 1.0])}, Reason.TYPE),
    ],
)
def test_hostile_arrays(spoil: dict[str, Any], expected: Reason) -> None:
    assert reason(TOLD, spoil=spoil) is expected


def test_a_checkpoint_keeps_them(tmp_path: Path) -> None:
    for told in (TOLD, replace(TOLD, **NO_FEATURES), replace(TOLD, **NO_PREDICTIONS)):
        checkpoint.save(tmp_path, RunState(1, {"pets": TaskState(told, {}, {})}))
        found = checkpoint.newest(tmp_path)
        assert found is not None
        back = found.tasks["pets"].knowledge
        assert isinstance(back, Prototypes)
        assert back.header() == told.header()
        assert back.arrays().keys() == told.arrays().keys()
        assert all(np.array_equal(back.arrays()[name], array) for name, array in told.arrays().items())


# Runs ----------------------------------------------------------------------------------------------------------------


def plan(name: str, **changes: Any) -> dict[str, Any]:
    return {"algorithm": {"name": name}, "tasks.wine.models": ["mlp-small"], "rounds.count": 3, **changes}


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


def last_told(played: Any) -> Prototypes:
    told = played.states[-1].tasks["wine"].knowledge
    assert isinstance(told, Prototypes)
    return told


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("codec", ["fp16", "topk"])
def test_with_absent_clients_and_own_classes(name: str, codec: str, play_small: Play) -> None:
    changes: dict[str, Any] = {
        "clients.cohort": 0.5,
        "codec": codec,
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }
    played = play_small(plan(name, **changes))

    assert [record["rejected"] for record in played.records] == [[]] * 5
    told = last_told(played)
    assert set(told.classes) <= {"class_0", "class_1", "class_2"}
    assert told.round == 3
    known = {len(client["wine"]["classes"]) for client in played.folder.config()["roster"].values()}
    assert known == {2}


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_goes_on_with_the_same_numbers(name: str, play_small: Play) -> None:
    changes = plan(name, **{"clients.cohort": 0.75, "clients.quorum": 1.0, "rounds.attempts": 1})
    down = True

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if down and message.metadata.message_type == ROUND and round_of(message) == 3:
            raise RuntimeError("no power")
        return inner(message, context)

    clean = play_small(changes, name="clean")
    with pytest.raises(QuorumError):
        play_small(changes, tamper=tamper)
    down = False
    resumed = play_small(changes)

    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]
    one, other = last_told(resumed), last_told(clean)
    assert one.header() == other.header()
    assert all(np.array_equal(one.arrays()[key], array) for key, array in other.arrays().items())


def test_a_client_that_was_refused_takes_no_share_out(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer of round 2 did not count: what comes back is the others' alone, and it says so."""
    seen: list[tuple[int, bool]] = []

    def watched(told: Prototypes, own: Any, *, without: Any = None) -> Any:
        seen.append((told.round, without is not None))
        return predictions_over(told, own, without=without)

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if (
            message.metadata.message_type == ROUND
            and round_of(message) == 2
            and context.node_config["partition-id"] == 1
        ):
            reply.content.array_records["knowledge.wine"]["predictions"] = Array(np.full((3, 3), 7, np.float32))
        return reply

    monkeypatch.setattr("fedstill.common.algorithms.fd.predictions_over", watched)
    played = play_small(plan("fd", **{"clients.quorum": 0.5}), tamper=tamper)

    assert [len(record["rejected"]) for record in played.records] == [0, 0, 1, 0, 0]
    counted = {number: sorted(out for came, out in seen if came == number) for number in (1, 2, 3)}
    assert counted == {1: [True] * 4, 2: [False, True, True, True], 3: [True] * 4}


@pytest.mark.parametrize("name", ["fedproto", "fedhkd"])
def test_models_of_other_widths_do_not_begin(name: str, play_small: Play) -> None:
    changes = plan(name, **{"tasks.wine.models": ["mlp-small", "mlp-medium"]})
    cure = r"set algorithm.width=64" if name == "fedproto" else "choose a method that sends predictions, such as fd"
    with pytest.raises(UnsupportedError, match=rf"last layers read \[64, 200\] features: expected one width .*{cure}"):
        play_small(changes)
    with pytest.raises(UnsupportedError, match="choose a model with hidden layers"):
        play_small(plan(name, **{"tasks.wine.models": ["linear-softmax"]}), name="linear")


def test_a_width_that_is_told_brings_them_together(play_small: Play) -> None:
    changes = plan("fedproto", **{"tasks.wine.models": ["mlp-small", "mlp-medium"]})
    played = play_small(changes | {"algorithm": {"name": "fedproto", "width": 20}})

    assert [record["rejected"] for record in played.records] == [[]] * 5
    assert last_told(played).features.shape == (3, 20)
    assert play_small(plan("fd", **{"tasks.wine.models": ["linear-softmax", "mlp-medium"]}), name="fd").records
