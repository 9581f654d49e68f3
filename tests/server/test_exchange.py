from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedstill.server.exchange import LONGEST_PAUSE, SPARE_TTL, Reply, ask

NODES = {"a": 11, "b": 12, "c": 13}
QUESTIONS = {name: RecordDict({"x": ConfigRecord({"n": number})}) for name, number in NODES.items()}


class ScriptedGrid(Grid):
    """A grid that answers by a script: for every look, the nodes whose replies are there."""

    def __init__(self, *looks: Iterable[int], refuse: Iterable[int] = (), largest_batch: int = 100) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._run = Run.create_empty(run_id=1)
        self._looks = iter(looks)
        self._refuse = set(refuse)
        self._largest = largest_batch
        self.pushed: list[Message] = []
        self.looked: list[int] = []
        self._counter = itertools.count()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return NODES.values()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        for message in batch:
            message.metadata.__dict__["_message_id"] = f"m{next(self._counter)}"
        if len(batch) > self._largest:
            return []
        taken = [message for message in batch if message.metadata.dst_node_id not in self._refuse]
        self.pushed += taken
        return [str(message.metadata.message_id) for message in taken]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        self.looked.append(len(wanted))
        replies = []
        for node in next(self._looks, ()):
            question = next(one for one in self.pushed if one.metadata.dst_node_id == node)
            reply = Message(RecordDict(), reply_to=question)
            replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("the round engine knows push and pull only")


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("fedstill.server.exchange.time.sleep", found.append)
    return found


def asked(grid: Grid, *, deadline: float = 1e6) -> Iterator[Reply]:
    ticks = itertools.count(0.0, 1.0)
    return ask(
        grid, QUESTIONS, NODES, kind="train.round", group="7", deadline=deadline, clock=lambda: float(next(ticks))
    )


def test_replies_come_as_they_are_there_until_all_are() -> None:
    grid = ScriptedGrid([12], [], [11, 13])

    replies = list(asked(grid))

    assert [(reply.client, reply.again) for reply in replies] == [("b", False), ("a", False), ("c", False)]
    assert grid.looked == [3, 2, 2]


def test_messages_carry_kind_group_and_a_life_beyond_the_deadline() -> None:
    grid = ScriptedGrid([11, 12, 13])

    list(asked(grid, deadline=100.0))

    assert [message.metadata.dst_node_id for message in grid.pushed] == [11, 12, 13]
    assert {message.metadata.message_type for message in grid.pushed} == {"train.round"}
    assert {message.metadata.group_id for message in grid.pushed} == {"7"}
    assert {message.metadata.ttl for message in grid.pushed} == {100.0 + SPARE_TTL}


def test_the_deadline_ends_it() -> None:
    grid = ScriptedGrid([12])

    replies = list(asked(grid, deadline=20.0))

    assert [reply.client for reply in replies] == ["b"]
    assert len(grid.looked) < 20


def test_nobody_to_ask() -> None:
    assert list(ask(ScriptedGrid(), {}, {}, kind="train.round", group="1", deadline=1e9)) == []


def test_pauses_grow_to_half_a_second_and_shrink_when_something_comes(slept: list[float]) -> None:
    grid = ScriptedGrid(*[[]] * 20, [11], [], [12, 13])
    list(ask(grid, QUESTIONS, NODES, kind="train.round", group="1", deadline=10.0, clock=lambda: 0.0))

    assert slept[:3] == pytest.approx([0.015, 0.0225, 0.03375])
    assert slept[19] == LONGEST_PAUSE
    assert slept[20] == pytest.approx(0.015)


def test_a_grid_that_waits_by_itself_is_not_waited_for_twice(slept: list[float]) -> None:
    # A look takes a second here: the clock tells it at each of its two calls round the look.
    ticks = itertools.count()
    grid = ScriptedGrid(*[[]] * 5, [11, 12, 13])
    list(ask(grid, QUESTIONS, NODES, kind="train.round", group="1", deadline=1e9, clock=lambda: float(next(ticks))))

    assert slept == [0.0] * 5


def test_the_last_pause_ends_with_the_deadline(slept: list[float]) -> None:
    now = itertools.chain([0.0], itertools.repeat(9.999))
    looks = itertools.count()

    def clock() -> float:
        return next(now) if next(looks) < 3 else 11.0

    list(ask(ScriptedGrid(), QUESTIONS, NODES, kind="train.round", group="1", deadline=10.0, clock=clock))

    assert all(0 <= pause <= 0.015 for pause in slept)


def test_a_second_reply_is_marked() -> None:
    replies = list(asked(ScriptedGrid([11, 11], [12, 11, 13])))

    assert [(reply.client, reply.again) for reply in replies] == [
        ("a", False),
        ("a", True),
        ("b", False),
        ("a", True),
        ("c", False),
    ]


def test_replies_to_other_questions_are_passed_over() -> None:
    grid = ScriptedGrid([11, 12, 13])
    stranger = Message(RecordDict(), 99, "train.round")
    stranger.metadata.__dict__["_message_id"] = "unknown"
    pull = grid.pull_messages

    def pull_with_stranger(message_ids: Iterable[str]) -> Iterable[Message]:
        return [Message(Error(1, "lost"), reply_to=stranger), *pull(message_ids)]

    grid.pull_messages = pull_with_stranger  # type: ignore[method-assign]

    assert [reply.client for reply in asked(grid)] == ["a", "b", "c"]


def test_a_refused_message_is_not_waited_for() -> None:
    replies = list(asked(ScriptedGrid([11, 13], refuse=[12])))

    assert [reply.client for reply in replies] == ["a", "c"]


def test_a_batch_that_is_too_large_goes_one_by_one() -> None:
    grid = ScriptedGrid([11, 12, 13], largest_batch=1)

    assert [reply.client for reply in asked(grid)] == ["a", "b", "c"]
    assert [message.metadata.dst_node_id for message in grid.pushed] == [11, 12, 13]
