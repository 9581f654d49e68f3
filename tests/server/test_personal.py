"""What differs from client to client reaches the right one, in runs with absent clients, codecs and interruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedstill.common import records
from fedstill.common.codecs.raw import Raw
from fedstill.common.errors import QuorumError
from fedstill.common.knowledge import Contribution, Knowledge, Personal, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import ROUND, Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.packing import content_bytes
from fedstill.common.scenario import parse
from fedstill.server import checkpoint, merging
from fedstill.server.questions import write_questions
from fedstill.server.state import RunState, TaskState

Play = Callable[..., Any]

METHODS = ("kt-pfl", "comet")


def labels(value: float) -> SoftLabels:
    return SoftLabels("categorical", ("a", "b"), np.array([0]), np.array([[value, 1 - value]], np.float32))


ONE, OTHER, COMMON = labels(0.125), labels(0.875), labels(0.5)


def first_value(knowledge: Knowledge | None) -> float:
    assert isinstance(knowledge, SoftLabels)
    return float(knowledge.values[0, 0])


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


def plan(name: str, **changes: Any) -> dict[str, Any]:
    return {"algorithm": {"name": name}, "rounds.count": 3, "alone": False, **changes}


def same(one: TaskState, other: TaskState) -> bool:
    pairs = [(one.knowledge, other.knowledge), *((told, other.personal[who]) for who, told in one.personal.items())]
    return one.personal.keys() == other.personal.keys() and all(
        left is not None and right is not None and np.array_equal(left.arrays()["values"], right.arrays()["values"])
        for left, right in pairs
    )


# The parts -----------------------------------------------------------------------------------------------------------


@dataclass
class Named:
    """A client that is known by its name alone."""

    name: str


@dataclass
class Whose:
    """A server's side of a task, as far as merging needs it."""

    clients: tuple[Named, ...]


class Echo:
    """Gives everybody its own answer back."""

    exchange = "soft-labels"

    def __init__(self, common: Knowledge | None = COMMON) -> None:
        self.common = common

    def merge(self, server: Any, contributions: list[Contribution]) -> Personal:
        return Personal(self.common, {one.client: one.knowledge for one in contributions})


def merged(
    method: Any, answers: Mapping[str, Mapping[str, Knowledge]], **tasks: tuple[str, ...]
) -> dict[str, Personal]:
    sides: Any = {name: Whose(tuple(map(Named, clients))) for name, clients in tasks.items()}
    held: Any = {name: Twin() for name in tasks}
    said = {
        client: Answer(client, "run", 1, 1, 0, {task: TaskAnswer("", 5, told) for task, told in parts.items()})
        for client, parts in answers.items()
    }
    return merging.merge(method, held, sides, said)


@dataclass
class Spec:
    """What two tasks have in common that can be merged."""

    output: str = "categorical"
    classes: tuple[str, ...] = ("a", "b")


class Twin:
    """A task whose label space and proxy samples another one has too."""

    group = "pets"
    spec = Spec()


def test_what_one_client_says_of_twin_tasks_comes_back_to_the_right_one() -> None:
    """Both tasks hear both answers; each tells its own clients, and client "c" has both tasks."""
    answers = {"a": {"seen": ONE}, "b": {"heard": OTHER}, "c": {"seen": labels(0.25), "heard": labels(0.75)}}

    found = merged(Echo(), answers, seen=("a", "c"), heard=("b", "c"))

    told = {name: {who: first_value(one) for who, one in task.own.items()} for name, task in found.items()}
    assert told == {"seen": {"a": 0.125, "c": 0.25}, "heard": {"b": 0.875, "c": 0.75}}
    assert merging.consensus_of(found) == {"seen": COMMON, "heard": COMMON}


def test_nothing_in_common_is_no_consensus() -> None:
    found = merged(Echo(None), {"a": {"seen": ONE}}, seen=("a", "b"))

    assert merging.consensus_of(found) == {}
    assert found["seen"].own == {"a": ONE}


def test_who_has_nothing_of_its_own_is_told_the_common() -> None:
    state = TaskState(COMMON, {}, {}, personal={"a": ONE})

    assert (state.told("a"), state.told("b")) == (ONE, COMMON)


def test_a_state_comes_back_and_clients_of_a_cluster_share(tmp_path: Path) -> None:
    personal = {"a/0": ONE, "b": OTHER, "c": ONE}
    checkpoint.save(tmp_path, RunState(1, {"pets": TaskState(COMMON, {}, {}, personal=personal)}))

    found = checkpoint.newest(tmp_path)

    assert found is not None
    task = found.tasks["pets"]
    assert {who: first_value(one) for who, one in task.personal.items()} == {"a/0": 0.125, "b": 0.875, "c": 0.125}
    assert task.personal["a/0"] is task.personal["c"]
    assert first_value(task.knowledge) == 0.5


def told_to(content: RecordDict) -> float:
    return first_value(records.read_order(content).tasks["pets"].knowledge)


def test_messages_hold_what_their_client_is_told_and_are_shared_where_they_can() -> None:
    method = Method("kt-pfl", {}, Training(), Raw())
    orders = {
        client: Order("run", 2, 3, 1, 1, 1, method, {"pets": TaskOrder("digest", np.array([0]), told)})
        for client, told in {"a": ONE, "b": OTHER, "c": COMMON, "d": ONE}.items()
    }

    questions, heard, down = write_questions(orders)

    assert {client: told_to(content) for client, content in questions.items()} == {
        "a": 0.125,
        "b": 0.875,
        "c": 0.5,
        "d": 0.125,
    }
    assert {client: first_value(order.tasks["pets"].knowledge) for client, order in heard.items()} == {
        "a": 0.125,
        "b": 0.875,
        "c": 0.5,
        "d": 0.125,
    }
    assert questions["a"].config_records["fedstill"] is questions["d"].config_records["fedstill"]
    assert down == {client: content_bytes(content) for client, content in questions.items()}


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("codec", ["raw", "fp16", "sqrtp"])
def test_everybody_hears_its_own(name: str, codec: str, play_small: Play) -> None:
    heard: dict[tuple[int, str], float] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and codec == "raw":
            told = records.read_order(message.content).tasks["wine"].knowledge
            if told is not None:
                heard[round_of(message), f"client-{context.node_config['partition-id']}"] = first_value(told)
        return inner(message, context)

    played = play_small(plan(name, codec=codec), tamper=tamper)

    assert [record["rejected"] for record in played.records] == [[]] * 5
    for state in played.states[1:]:
        assert len(state.tasks["wine"].personal) == 4
        assert state.tasks["wine"].heard is None or state.step == 1
    wanted = {
        (state.step + 1, who): first_value(told)
        for state in played.states[1:3]
        for who, told in state.tasks["wine"].personal.items()
    }
    assert heard == (wanted if codec == "raw" else {})
    measures = played.records[2]["tasks"]["wine"]["server"]
    assert "consensus.accuracy" in measures


@pytest.mark.parametrize("name", METHODS)
def test_with_absent_clients_and_own_classes(name: str, play_small: Play) -> None:
    changes: dict[str, Any] = {
        "clients.cohort": 0.5,
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }
    played = play_small(plan(name, **changes))

    assert [record["rejected"] for record in played.records] == [[]] * 5
    assert all(len(record["accepted"]) == 2 for record in played.records[1:4])
    for state in played.states[1:]:
        for told in state.tasks["wine"].personal.values():
            assert isinstance(told, SoftLabels)
            np.testing.assert_allclose(told.values.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("codec", ["raw", "sqrtp"])
def test_an_interrupted_run_goes_on_with_the_same_numbers(name: str, codec: str, play_small: Play) -> None:
    changes = plan(name, codec=codec, **{"clients.cohort": 0.75, "clients.quorum": 1.0, "rounds.attempts": 1})
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
    assert same(resumed.states[-1].tasks["wine"], clean.states[-1].tasks["wine"])
    assert resumed.states[-1].tasks["wine"].personal


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_learns_what_is_common_and_clients_hear_their_own(name: str, play_small: Play) -> None:
    plain = play_small(plan(name), name="plain")
    taught = play_small(plan(name, teacher={"kind": "model", "epochs": 1}), name="taught")

    one, other = (played.states[1].tasks["wine"] for played in (plain, taught))
    assert all(first_value(told) == first_value(other.personal[who]) for who, told in one.personal.items())
    assert first_value(one.knowledge) != first_value(other.knowledge)
    assert "accuracy" in taught.records[1]["tasks"]["wine"]["server"]


def test_tasks_that_share_their_samples(play_small: Play) -> None:
    shared = {"samples": 50, "shared": "digits"}
    digit = {"kind": "image", "source": "digits", "samples": 300, "models": ["linear-softmax"], "proxy": shared}
    tasks = {"seen": {**digit, "clients": [0, 1]}, "too": {**digit, "clients": [1, 2]}}
    scenario = parse(
        {
            "clients": {"count": 3},
            "rounds": {"count": 2, "backoff": 0},
            "training": {"epochs": 1, "batch-size": 16},
            "algorithm": {"name": "kt-pfl"},
            "alone": False,
            "tasks": tasks,
        }
    )

    played = play_small(scenario=scenario)

    assert [record["rejected"] for record in played.records] == [[]] * 4
    told = played.states[1].tasks
    assert sorted(told["seen"].personal) == ["client-0", "client-1"]
    assert sorted(told["too"].personal) == ["client-1", "client-2"]
