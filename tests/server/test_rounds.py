from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from numpy.typing import NDArray
from small_runs import (
    NAMES,
    TWO_TASKS,
    Play,
    Small,
    attempt_of,
    failing,
    number_of,
    round_of,
    same_knowledge,
    soft,
    without_time,
)

from fedstill.common import records
from fedstill.common.errors import QuorumError
from fedstill.common.messages import ALONE, FINISH, ROUND
from fedstill.common.packing import packed
from fedstill.server import checkpoint
from fedstill.server.rounds import draw_cohort
from fedstill.simulations.engine import LocalGrid

# A run --------------------------------------------------------------------------------------------------------------


def test_a_run_is_alone_then_rounds_then_finish(play_small: Play) -> None:
    played = play_small()

    assert [(record["kind"], record["step"]) for record in played.records] == [
        ("alone", 0),
        ("round", 1),
        ("round", 2),
        ("finish", 3),
    ]
    for record in played.records:
        assert record["cohort"] == record["accepted"] == list(NAMES)
        assert record["rejected"] == record["abandoned"] == record["restarted"] == []
        assert record["attempt"] == 1
    stages = [
        {key.split(".")[0] for key in record["tasks"]["wine"]["clients"]["client-0"]} for record in played.records
    ]
    assert stages == [{"alone"}, {"trained"}, {"distilled", "trained"}, {"final"}]
    assert [state.step for state in played.states] == [0, 1, 2, 3]
    assert played.states[0].versions == {}
    assert played.states[3].versions == dict.fromkeys(NAMES, 3)


def test_what_a_round_shares_is_what_the_next_one_tells(play_small: Play) -> None:
    told: dict[int, set[bytes]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type in (ROUND, FINISH):
            record = message.content.array_records["knowledge.wine"]
            told.setdefault(round_of(message), set()).update(array.data for array in record.values())
        return inner(message, context)

    played = play_small(tamper=tamper)

    assert told[1] == set()  # fedmd has nothing to tell before the first answers
    for step in (2, 3):
        (content,) = told[step]
        consensus = soft(played.states[step - 1].tasks["wine"].knowledge)
        assert np.array_equal(Array(consensus.values).numpy(), Array("<f4", (), "numpy.ndarray", content).numpy())


def test_consensus_is_the_mean_of_the_answers(play_small: Play) -> None:
    sent: dict[int, NDArray[np.float32]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND and round_of(message) == 1:
            sent[number_of(context)] = reply.content.array_records["knowledge.wine"]["values"].numpy()
        return reply

    played = play_small(tamper=tamper)

    mean = np.mean([values.astype(np.float64) for values in sent.values()], axis=0)
    expected = (mean / mean.sum(-1, keepdims=True)).astype(np.float32)
    consensus = soft(played.states[1].tasks["wine"].knowledge)
    np.testing.assert_array_max_ulp(consensus.values, expected, maxulp=1)
    assert consensus.samples.tolist() == list(range(40))
    assert consensus.classes == ("class_0", "class_1", "class_2")


def test_alone_is_what_the_method_local_gives(play_small: Play) -> None:
    alone = play_small({"rounds.count": 3}, name="fedmd").records[0]
    local = play_small({"rounds.count": 3, "algorithm.name": "local", "alone": False}, name="local").records

    for client in NAMES:
        floor = alone["tasks"]["wine"]["clients"][client]
        trained = local[3]["tasks"]["wine"]["clients"][client]
        assert {key.removeprefix("alone."): value for key, value in floor.items()} == {
            key.removeprefix("trained."): value for key, value in trained.items()
        }


def test_without_alone_nobody_is_asked_in_step_0(play_small: Play) -> None:
    kinds: Counter[str] = Counter()

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        kinds[message.metadata.message_type] += 1
        return inner(message, context)

    played = play_small({"alone": False}, tamper=tamper)

    assert played.records[0]["cohort"] == []
    # Descriptions are all that was sent before the first round.
    assert set(played.records[0]["bytes"]["clients"]) == set(played.records[1]["cohort"])
    assert all(
        0 < part["up"] < 250 and 0 < part["down"] < 180 for part in played.records[0]["bytes"]["clients"].values()
    )
    assert kinds == {"query.describe": 4, ROUND: 8, FINISH: 4}


def test_one_message_per_client_and_step(play_small: Play) -> None:
    kinds: Counter[tuple[str, int]] = Counter()

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        kinds[message.metadata.message_type, number_of(context)] += 1
        return inner(message, context)

    play_small(TWO_TASKS, tamper=tamper)

    assert kinds == {
        (kind, client): count
        for client in range(4)
        for kind, count in {"query.describe": 1, ALONE: 1, ROUND: 2, FINISH: 1}.items()
    }


def test_bytes_are_those_of_the_messages(play_small: Play) -> None:
    sizes: dict[str, dict[str, int]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND and round_of(message) == 2:
            client = NAMES[number_of(context)]
            reply.content = packed(reply.content)  # as the client sent it
            message.content = packed(message.content, apart=[records.CLIENT])
            sizes[client] = {
                "down": message_to_proto(message).content.ByteSize(),
                "up": message_to_proto(reply).content.ByteSize(),
            }
        return reply

    traffic = play_small(tamper=tamper).records[2]["bytes"]

    assert traffic["clients"] == sizes
    assert traffic["up"] == sum(size["up"] for size in sizes.values())
    assert traffic["down"] == sum(size["down"] for size in sizes.values())


def test_progress_is_told_inside_a_step(play_small: Play) -> None:
    played = play_small({"rounds.count": 1})

    told = [
        (pulse.kind, pulse.step, pulse.steps, pulse.attempt, pulse.asked, pulse.answered) for pulse in played.pulses
    ]
    assert told == [
        (kind, step, 2, 1, 4, answered)
        for step, kind in enumerate(("alone", "round", "finish"))
        for answered in range(5)
    ]


# Quorum -------------------------------------------------------------------------------------------------------------


def test_a_client_that_raises_is_counted_and_the_round_commits(play_small: Play) -> None:
    played = play_small(tamper=failing(client=2, steps=(1,)))

    record = played.records[1]
    assert record["accepted"] == ["client-0", "client-1", "client-3"]
    assert record["rejected"] == [{"client": "client-2", "reason": "client-error", "detail": "RuntimeError: no power"}]
    assert record["attempt"] == 1
    assert played.states[1].versions == {"client-0": 1, "client-1": 1, "client-3": 1}
    assert played.records[2]["accepted"] == list(NAMES)
    assert played.records[2]["restarted"] == []  # it never had a student to lose


def test_a_round_below_quorum_is_abandoned_without_a_trace(play_small: Play) -> None:
    clean = play_small(name="one")

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        second = message.metadata.message_type == ROUND and round_of(message) == 2
        if second and attempt_of(message) == 1 and number_of(context) != 0:
            raise RuntimeError("not yet")
        return inner(message, context)

    played = play_small(tamper=tamper)

    record = played.records[2]
    assert record["attempt"] == 2
    assert record["accepted"] == list(NAMES)
    assert record["rejected"] == []
    (abandoned,) = record["abandoned"]
    assert abandoned["attempt"] == 1
    assert abandoned["accepted"] == ["client-0"]
    assert [one["reason"] for one in abandoned["rejected"]] == ["client-error"] * 3
    # client-0 worked twice, each time from the student of round 1: every number is as if nothing had happened.
    assert played.records[2]["tasks"] == clean.records[2]["tasks"]
    assert played.records[3]["tasks"] == clean.records[3]["tasks"]
    assert same_knowledge(played.states[2].tasks["wine"].knowledge, clean.states[2].tasks["wine"].knowledge)
    # Both attempts were on the wire.
    assert record["bytes"]["down"] == pytest.approx(2 * clean.records[2]["bytes"]["down"], rel=0.01)


def test_a_run_below_quorum_ends_and_goes_on_later(play_small: Play, caplog: pytest.LogCaptureFixture) -> None:
    clean = play_small(name="one")
    broken = play_small({"rounds.count": 1}, name="shape")  # only for its type: what is committed before the failure
    broken.states.clear()
    changes = {"clients.quorum": 0.75, "rounds.attempts": 3}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 2 and number_of(context) > 1:
            raise RuntimeError("gone")
        return inner(message, context)

    with pytest.raises(QuorumError) as caught:
        play_small(changes, tamper=tamper, played=broken)

    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        "round 2: 2 of 4 clients answered, 3 times: expected at least 3 (2 client-error (RuntimeError: gone)) "
        "(mend the clients and resume the run)"
    )
    shortage = "2 of 4 clients answered, 3 are needed (2 client-error (RuntimeError: gone))"
    assert [record.getMessage() for record in caplog.records if "abandoned" in record.getMessage()] == [
        f"round 2, attempt {attempt} of 3 abandoned: {shortage}" for attempt in (1, 2, 3)
    ]
    assert [record["step"] for record in broken.records] == [0, 1]
    before, kept = broken.states[-1], checkpoint.newest(broken.folder.path / "checkpoints")
    assert kept is not None
    assert (kept.step, kept.versions) == (1, dict.fromkeys(NAMES, 1))
    assert same_knowledge(kept.tasks["wine"].knowledge, before.tasks["wine"].knowledge)

    resumed = play_small(changes)

    assert [state.step for state in resumed.states] == [2, 3]
    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]


def test_backoff_doubles(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("fedstill.server.rounds.time.sleep", slept.append)

    with pytest.raises(QuorumError):
        play_small(
            {"rounds.backoff": 0.5, "rounds.attempts": 4, "clients.quorum": 1.0},
            tamper=failing(client=0, steps=(1,)),
        )

    assert slept == [0.5, 1.0, 2.0]


def test_a_run_does_not_begin_with_too_few_clients(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if number_of(context) > 0:
            raise RuntimeError("not installed")
        return inner(message, context)

    with pytest.raises(QuorumError, match=r"1 of 4 clients can take part: expected at least 2 .*not installed"):
        play_small({"rounds.deadline": 0.5}, tamper=tamper)


def test_a_client_that_cannot_describe_itself_is_left_out(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if number_of(context) == 3:
            raise RuntimeError("not installed")
        return inner(message, context)

    played = play_small(tamper=tamper)

    assert all(record["cohort"] == list(NAMES[:3]) for record in played.records)
    assert list(played.folder.config()["roster"]) == list(NAMES[:3])
    assert ["not installed" in why for why in played.folder.config()["refused"].values()] == [True]


# Cohorts ------------------------------------------------------------------------------------------------------------


def test_cohorts_are_a_seeded_sample(small: Small) -> None:
    scenario = small({"clients.count": 8, "clients.cohort": 0.5})
    names = tuple(f"client-{number}" for number in range(8))

    def drawn(seed: int, step: int, attempt: int) -> list[int]:
        one = small({"clients.count": 8, "clients.cohort": 0.5, "seed": seed})
        return [names.index(name) for name in draw_cohort(names, one, step, attempt)]

    # Pinned: a change here changes every run.
    assert [drawn(1, step, 1) for step in (1, 2, 3)] == [[0, 1, 2, 4], [0, 2, 3, 5], [0, 1, 2, 5]]
    assert drawn(1, 1, 2) != drawn(1, 1, 1)
    assert drawn(2, 1, 1) != drawn(1, 1, 1)
    asked = Counter(name for step in range(200) for name in draw_cohort(names, scenario, step, 1))
    assert set(asked) == set(names)
    assert all(70 < count < 130 for count in asked.values())  # 100 each in the mean, deviation 7


def test_a_cohort_has_at_least_one_client_and_at_most_all(small: Small) -> None:
    assert len(draw_cohort(NAMES, small({"clients.cohort": 0.01}), 1, 1)) == 1
    assert draw_cohort(NAMES, small({"clients.cohort": 1.0}), 1, 1) == NAMES


def test_an_abandoned_cohort_is_followed_by_another(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 1 and attempt_of(message) < 3:
            raise RuntimeError("busy")
        return inner(message, context)

    played = play_small({"clients.cohort": 0.5}, tamper=tamper)

    record = played.records[1]
    cohorts = [attempt["cohort"] for attempt in record["abandoned"]] + [record["cohort"]]
    assert [attempt["attempt"] for attempt in record["abandoned"]] == [1, 2]
    assert all(len(cohort) == 2 for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert played.records[3]["cohort"] == list(NAMES)  # everybody takes in the last shared knowledge


# The deadline -------------------------------------------------------------------------------------------------------


def losing(*, client: int) -> type[LocalGrid]:
    """A grid on which a client's orders of the rounds get lost."""

    class Losing(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            identities: list[str] = []
            for message in messages:
                lost = message.metadata.message_type == ROUND and list(self.get_node_ids())[client]
                if lost == message.metadata.dst_node_id:
                    message.metadata.__dict__["_message_id"] = f"lost-{len(identities)}"
                    identities.append(f"lost-{len(identities)}")
                else:
                    identities += super().push_messages([message])
            return identities

    return Losing


class Ticking:
    """A monotonic clock that goes on by itself: 10 s a look."""

    def __init__(self) -> None:
        self._now = itertools.count(0.0, 10.0)

    def __call__(self) -> float:
        return next(self._now)


def test_a_client_that_never_answers(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.server.exchange.time.sleep", lambda _: None)

    played = play_small({"rounds.deadline": 200.0}, grid_class=losing(client=1), clock=Ticking())

    for record in played.records[1:3]:
        assert record["accepted"] == ["client-0", "client-2", "client-3"]
        assert record["rejected"] == [
            {"client": "client-1", "reason": "no-answer", "detail": "none within 200 s"},
        ]
    assert played.records[3]["accepted"] == list(NAMES)
    assert played.states[3].versions == dict.fromkeys(NAMES, 3)
    assert played.records[1]["bytes"]["clients"]["client-1"]["up"] == 0


def test_the_wall_clock_moves_nothing(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = play_small(name="one")
    jumps = itertools.cycle([0.0, 1e9, -1e6])
    monkeypatch.setattr("time.time", lambda: next(jumps))

    assert without_time(play_small().records) == without_time(clean.records)


# Students -----------------------------------------------------------------------------------------------------------


def test_a_client_that_lost_its_student_begins_anew_and_is_named(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 2 and number_of(context) == 1:
            shutil.rmtree(Path(str(context.node_config["store"])) / "client-1")
        return inner(message, context)

    played = play_small(tamper=tamper)

    assert [record["restarted"] for record in played.records] == [[], [], ["client-1"], []]
    assert played.records[2]["accepted"] == list(NAMES)
