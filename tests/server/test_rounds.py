from __future__ import annotations

import itertools
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from numpy.typing import NDArray

from fedstill.common import records
from fedstill.common.codecs import sqrtp
from fedstill.common.codecs.sqrtp import SqrtP
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import QuorumError, Reason, UnsupportedError
from fedstill.common.knowledge import Knowledge, Parameters, SoftLabels
from fedstill.common.learning import Training, predict
from fedstill.common.messages import ALONE, FINISH, ROUND
from fedstill.common.models import build_model
from fedstill.common.packing import packed
from fedstill.common.scenario import Scenario
from fedstill.common.tasks.tabular import TabularTask
from fedstill.server import checkpoint
from fedstill.server.admission import Rejection
from fedstill.server.holdings import simulated
from fedstill.server.rounds import draw_cohort, why
from fedstill.server.state import RunState
from fedstill.server.teacher.pretrained import save_weights
from fedstill.simulations.engine import LocalGrid

Small = Callable[..., Scenario]
Play = Callable[..., Any]
Spoil = Callable[[RecordDict], None]

NAMES = ("client-0", "client-1", "client-2", "client-3")


def number_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


def attempt_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["attempt"]))


def failing(*, client: int, steps: Iterable[int] = (1,), kind: str = ROUND) -> Callable[..., Message]:
    """A client that raises in some steps."""

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == kind and number_of(context) == client and round_of(message) in steps:
            raise RuntimeError("no power")
        return inner(message, context)

    return tamper


def spoiling(spoil: Spoil, *, client: int = 1, step: int = 1, kind: str = ROUND) -> Callable[..., Message]:
    """A client whose answer to one step is spoilt on its way."""

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        wanted = message.metadata.message_type == kind and number_of(context) == client and round_of(message) == step
        reply = inner(message, context)
        if wanted:
            spoil(reply.content)
        return reply

    return tamper


def without_time(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def soft(knowledge: Knowledge | None) -> SoftLabels:
    assert isinstance(knowledge, SoftLabels)
    return knowledge


def same_knowledge(left: Knowledge | None, right: Knowledge | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.header() == right.header() and all(
        np.array_equal(array, right.arrays()[name]) for name, array in left.arrays().items()
    )


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


# Rejections ---------------------------------------------------------------------------------------------------------


def _head(**values: str | int) -> Spoil:
    return lambda content: content.config_records["fedstill"].update(values)


def _task(**values: str | int | list[str]) -> Spoil:
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    return lambda content: content.config_records["task.wine"].update(named)


def _values(make: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Spoil:
    def spoil(content: RecordDict) -> None:
        record = content.array_records["knowledge.wine"]
        record["values"] = Array(make(record["values"].numpy()))

    return spoil


def _other_samples(content: RecordDict) -> None:
    content.config_records["task.wine"]["samples.knowledge"] = "listed"
    content.array_records["knowledge.wine"]["samples.knowledge"] = Array(np.arange(100, 140, dtype=np.uint8))


def _bloated(content: RecordDict) -> None:
    content["padding"] = ConfigRecord({"": b"x" * 300_000})


def _no_numpy(content: RecordDict) -> None:
    content.array_records["knowledge.wine"]["values"] = Array("<f4", (40, 3), "numpy.ndarray", b"import os")


def _another_task(content: RecordDict) -> None:
    content["task.other"] = ConfigRecord({"proxy-digest": "0", "num-examples": 1})


def _headless(content: RecordDict) -> None:
    del content["fedstill"]


SPOILT: dict[str, tuple[Spoil, Reason]] = {
    "NaN": (_values(lambda values: np.full_like(values, np.nan)), Reason.NOT_FINITE),
    "classes that it did not announce": (_task(header__classes=["class_0", "class_1", "x"]), Reason.CLASSES),
    "a class twice": (_task(header__classes=["class_0", "class_1", "class_1"]), Reason.CLASSES),
    "samples that nobody asked for": (_other_samples, Reason.SAMPLES),
    "too many samples": (_task(samples__knowledge="first 999999999"), Reason.SAMPLES),
    "a column less": (_values(lambda values: values[:, :2]), Reason.SHAPE),
    "a position more": (_values(lambda values: values[:, None]), Reason.SHAPE),
    "double precision": (_values(lambda values: values.astype(np.float64)), Reason.TYPE),
    "complex numbers": (_values(lambda values: values.astype(np.complex64)), Reason.TYPE),
    "sums of 2": (_values(lambda values: values * 2), Reason.RANGE),
    "no examples": (_task(num_examples=0), Reason.RANGE),
    "the round before": (_head(round=0), Reason.STALE),
    "another attempt": (_head(attempt=2), Reason.STALE),
    "another run": (_head(run="yesterday"), Reason.STALE),
    "another proxy set": (_task(proxy_digest="0" * 64), Reason.PROXY),
    "another protocol": (_head(protocol=999), Reason.PROTOCOL),
    "too many bytes": (_bloated, Reason.TOO_LARGE),
    "another client's name": (_head(client="client-0"), Reason.SENDER),
    "a task that nobody has": (_another_task, Reason.TASK),
    "another temperature": (_task(header__temperature=3), Reason.KIND),
    "logits": (_task(header__form="logits"), Reason.KIND),
    "weights": (_task(kind="parameters"), Reason.KIND),
    "a plea to be told all again, twice": (_head(lost=True), Reason.CONTEXT),
    "no array": (_no_numpy, Reason.MALFORMED),
    "no head": (_headless, Reason.MALFORMED),
    "unknown knowledge": (_task(kind="wisdom"), Reason.MALFORMED),
    **{
        f"a refusal: {reason}": (_head(refused=str(reason), detail="no"), reason)
        for reason in (
            Reason.REFUSED,
            Reason.VERSION,
            Reason.TOKENIZER,
            Reason.BUSY,
            Reason.RESOURCES,
            Reason.STORAGE,
        )
    },
    "a refusal for no known reason": (_head(refused="boredom", detail="no"), Reason.REFUSED),
    "a refusal for a reason that only a server can have": (
        _head(refused=str(Reason.NO_ANSWER), detail="no"),
        Reason.REFUSED,
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_answer_counts_for_its_sender_alone(play_small: Play, what: str) -> None:
    spoil, reason = SPOILT[what]
    sent: dict[int, SoftLabels] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = spoiling(spoil)(message, context, inner)
        if message.metadata.message_type == ROUND and round_of(message) == 1 and number_of(context) != 1:
            values = reply.content.array_records["knowledge.wine"]["values"].numpy()
            classes = ("class_0", "class_1", "class_2")
            sent[number_of(context)] = SoftLabels("categorical", classes, np.arange(40), values)
        return reply

    played = play_small({"rounds.largest-message": 200_000, "alone": False}, tamper=tamper)

    (rejection,) = played.records[1]["rejected"]
    assert (rejection["client"], rejection["reason"]) == ("client-1", reason)
    assert rejection["detail"]
    assert played.records[1]["accepted"] == ["client-0", "client-2", "client-3"]
    assert played.states[1].versions == {"client-0": 1, "client-2": 1, "client-3": 1}
    space = ("class_0", "class_1", "class_2")
    expected = mean_soft_labels([sent[number] for number in (0, 2, 3)], space=space)
    assert same_knowledge(played.states[1].tasks["wine"].knowledge, expected)
    assert played.records[2]["accepted"] == list(NAMES)
    assert played.states[-1].step == 3


def test_every_reason_is_reached_through_the_engine() -> None:
    elsewhere = {Reason.NO_ANSWER, Reason.CLIENT_ERROR, Reason.DUPLICATE}

    assert {reason for _, reason in SPOILT.values()} | elsewhere == set(Reason)


def test_the_first_of_two_answers_counts(play_small: Play) -> None:
    clean = play_small(name="one")

    class Echo(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            found = list(super().pull_messages(message_ids))
            return [*found, *(message_from_proto(message_to_proto(reply)) for reply in found)]

    played = play_small(grid_class=Echo)

    for record in played.records:
        assert [(one["client"], one["reason"]) for one in record["rejected"]] == [(name, "duplicate") for name in NAMES]
        assert record["accepted"] == list(NAMES)
    assert [record["tasks"] for record in played.records] == [record["tasks"] for record in clean.records]


@pytest.mark.parametrize("kind", [ALONE, FINISH])
def test_knowledge_is_taken_in_rounds_only(play_small: Play, kind: str) -> None:
    step = 0 if kind == ALONE else 3

    def tell(content: RecordDict) -> None:
        content.config_records["task.wine"]["kind"] = "parameters"
        content["knowledge.wine"] = ArrayRecord({"weight": Array(np.zeros(1, dtype=np.float32))})

    played = play_small(tamper=spoiling(tell, kind=kind, step=step))

    (rejection,) = played.records[step]["rejected"]
    assert (rejection["client"], rejection["reason"]) == ("client-1", "other-knowledge")
    assert "client-1" not in played.records[step]["tasks"]["wine"]["clients"]


def test_weights_of_another_layout_are_refused(play_small: Play) -> None:
    def cut(content: RecordDict) -> None:
        record = content.array_records["knowledge.wine"]
        name = next(iter(record))
        record[name] = Array(record[name].numpy()[:1])

    played = play_small(
        {"algorithm.name": "fedavg", "tasks.wine.models": ["mlp-small"], "alone": False}, tamper=spoiling(cut)
    )

    (rejection,) = played.records[1]["rejected"]
    assert (rejection["client"], rejection["reason"]) == ("client-1", "other-shape")


def test_measures_of_a_stranger_cannot_spoil_the_files(play_small: Play) -> None:
    def spoil(content: RecordDict) -> None:
        content.metric_records["metrics.wine"].update({"trained.accuracy": float("nan"), 'quote"\n': float("inf")})

    played = play_small({"alone": False}, tamper=spoiling(spoil))

    measures = played.records[1]["tasks"]["wine"]["clients"]["client-1"]
    assert measures["trained.accuracy"] is None
    assert measures['quote"\n'] is None
    assert len(played.records) == 4


def test_a_client_rejected_again_and_again_keeps_its_student(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND and number_of(context) == 1 and 2 <= round_of(message) <= 5:
            reply.content.config_records["task.wine"]["num-examples"] = 0
        return reply

    played = play_small({"rounds.count": 6, "alone": False}, tamper=tamper)

    assert played.states[5].versions["client-1"] == 1
    assert [record["restarted"] for record in played.records] == [[]] * 8
    assert played.records[6]["accepted"] == list(NAMES)


def test_why_says_it_in_a_few_words() -> None:
    rejections = [
        Rejection("client-0", Reason.CLIENT_ERROR, "RuntimeError: no power"),
        Rejection("client-1", Reason.NO_ANSWER, "none within 5 s"),
        Rejection("client-2", Reason.CLIENT_ERROR, "RuntimeError: no memory"),
    ]

    assert why(rejections) == "2 client-error (RuntimeError: no power), 1 no-answer (none within 5 s)"
    assert why([]) == "none rejected"


# Students -----------------------------------------------------------------------------------------------------------


def test_a_client_that_lost_its_student_begins_anew_and_is_named(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 2 and number_of(context) == 1:
            shutil.rmtree(Path(str(context.node_config["store"])) / "client-1")
        return inner(message, context)

    played = play_small(tamper=tamper)

    assert [record["restarted"] for record in played.records] == [[], [], ["client-1"], []]
    assert played.records[2]["accepted"] == list(NAMES)


# Codecs that remember -----------------------------------------------------------------------------------------------

REMEMBERS = {"codec": "sqrtp", "rounds.count": 4, "algorithm.temperature": 3.0}


def test_a_codec_that_remembers_sends_less_and_says_the_same(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, list[int]] = {"first": [], "plain": []}
    contexts: list[int] = []

    def watching(name: str) -> Callable[..., Message]:
        def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
            reply = inner(message, context)
            for content in (message.content, reply.content):
                record = content.array_records.get("knowledge.wine", ArrayRecord())
                if "values:sqrtp" in record:
                    data = record["values:sqrtp"].numpy()
                    sizes[name].append(len(data))
                    contexts.append(int(data[6]) if name == "first" else 0)
            return reply

        return tamper

    played = play_small(REMEMBERS, tamper=watching("first"), name="first")
    with monkeypatch.context() as patched:
        patched.setattr(SqrtP, "uses_context", False)
        plain = play_small(REMEMBERS, tamper=watching("plain"), name="plain")

    assert all(record["rejected"] == record["restarted"] == [] for record in played.records)
    for one, other in zip(played.states, plain.states, strict=True):
        assert same_knowledge(one.tasks["wine"].knowledge, other.tasks["wine"].knowledge)
    assert list(played.states[4].tasks["wine"].own) == list(NAMES)
    assert played.states[4].tasks["wine"].heard is not None
    assert not plain.states[4].tasks["wine"].own
    # Forty samples of three classes: in the context of what was told before, or without where that is shorter.
    assert all(less <= more for less, more in zip(sizes["first"], sizes["plain"], strict=True))
    assert sum(sizes["first"]) < sum(sizes["plain"])
    assert {0, 1, 3} <= set(contexts)


def test_a_client_that_lost_its_memory_is_told_all_of_it_at_once(
    play_small: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqrtp, "_ways", lambda known: [known])  # in context, even where that is longer
    asked: list[tuple[int, int]] = []

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND:
            asked.append((round_of(message), number_of(context)))
            if asked[-1] == (3, 1) and asked.count((3, 1)) == 1:
                shutil.rmtree(Path(str(context.node_config["store"])) / "client-1")
        return inner(message, context)

    played = play_small(REMEMBERS, tamper=tamper)

    assert asked.count((3, 1)) == 2
    assert len(asked) == 4 * 4 + 1
    assert all(record["rejected"] == [] for record in played.records)
    assert [record["restarted"] for record in played.records] == [[], [], [], ["client-1"], [], []]
    first, second = (played.records[3]["bytes"]["clients"][name]["down"] for name in ("client-0", "client-1"))
    assert second > 1.8 * first  # it was asked twice, and both count


def test_an_answer_coded_in_another_context_is_rejected_and_the_next_one_is_not(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 2 and number_of(context) == 1:
            reply = inner(message, context)
            array = reply.content.array_records["knowledge.wine"]["values:sqrtp"].numpy().copy()
            array[7] ^= 1  # a bit of the digest
            array[:4] = np.frombuffer(zlib.crc32(array[4:].tobytes()).to_bytes(4, "little"), dtype=np.uint8)
            reply.content.array_records["knowledge.wine"]["values:sqrtp"] = Array(array)
            return reply
        return inner(message, context)

    played = play_small(REMEMBERS, tamper=tamper)

    rejected = [[(one["client"], one["reason"]) for one in record["rejected"]] for record in played.records]
    assert rejected == [[], [], [("client-1", "other-context")], [], [], []]


def test_a_resumed_run_remembers(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 3:
            raise RuntimeError("no power")
        return inner(message, context)

    whole = play_small(REMEMBERS, name="unbroken")
    with pytest.raises(QuorumError):
        play_small(REMEMBERS, tamper=tamper, name="restored")
    halved = play_small(REMEMBERS, name="restored")

    assert [record["bytes"] for record in halved.records] == [record["bytes"] for record in whole.records]
    assert same_knowledge(whole.states[-1].tasks["wine"].knowledge, halved.states[-1].tasks["wine"].knowledge)


# Methods and models -------------------------------------------------------------------------------------------------


def test_a_method_that_sends_weights_refuses_mixed_models(play_small: Play) -> None:
    with pytest.raises(UnsupportedError) as caught:
        play_small({"algorithm.name": "fedavg"})

    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("algorithm 'fedavg' with models linear-softmax (42 parameters), mlp-small (")
    assert "set tasks.wine.models to one model" in str(caught.value)


def test_a_method_that_sends_weights_refuses_partial_label_spaces(play_small: Play) -> None:
    changes = {
        "algorithm.name": "fedavg",
        "tasks.wine.models": ["linear-softmax"],
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }

    with pytest.raises(UnsupportedError, match=r"client-0, who knows 2 of 3 classes .*label-space = \"shared\""):
        play_small(changes)


def test_fedavg_averages_by_examples_and_the_server_measures_the_average(play_small: Play) -> None:
    sent: dict[int, tuple[int, dict[str, NDArray[Any]]]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND and round_of(message) == 2:
            arrays = {name: array.numpy() for name, array in reply.content.array_records["knowledge.wine"].items()}
            examples = int(reply.content.config_records["task.wine"]["num-examples"])  # type: ignore[arg-type]
            sent[number_of(context)] = (examples, arrays)
        return reply

    played = play_small({"algorithm.name": "fedavg", "tasks.wine.models": ["linear-softmax"]}, tamper=tamper)

    total = sum(examples for examples, _ in sent.values())
    state = played.states[2].tasks["wine"]
    assert isinstance(state.knowledge, Parameters)
    for name, array in state.knowledge.weights.items():
        expected = np.sum([examples / total * arrays[name].astype(float) for examples, arrays in sent.values()], axis=0)
        np.testing.assert_allclose(array.astype(float), expected, rtol=1e-6, atol=1e-7)
        assert np.array_equal(array, state.model[name].numpy())
    server = played.records[2]["tasks"]["wine"]["server"]
    assert set(server) == {"accuracy", "macro-f1", "auc", "class-accuracy"}


def _untrained(played: Any) -> float:
    """Accuracy of the server's model as it was before the first round."""
    own = simulated(played.folder.scenario(), None)["wine"]
    assert own.test is not None
    model = build_model(own.model, own.spec, seed=0)
    model.load_state_dict(dict(played.states[0].tasks["wine"].model))
    logits = predict(model, own.test.inputs, training=Training())
    return own.task.measure(logits, own.test.targets, own.spec.classes)["accuracy"]


def test_central_asks_no_client_and_trains_on_everything(play_small: Play) -> None:
    kinds: Counter[str] = Counter()

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        kinds[message.metadata.message_type] += 1
        return inner(message, context)

    played = play_small({"algorithm.name": "central", "rounds.count": 4}, tamper=tamper)

    assert kinds == {"query.describe": 4}
    assert all(record["cohort"] == [] for record in played.records)
    scores = [record["tasks"]["wine"]["server"]["accuracy"] for record in played.records[1:]]
    assert played.records[0]["tasks"]["wine"]["server"] == {}  # a model that has seen nothing is not measured
    assert scores[3] > _untrained(played) + 0.2
    assert scores[4] == scores[3]


def test_central_learns_the_right_labels_where_clients_number_their_own(play_small: Play) -> None:
    changes = {
        "algorithm.name": "central",
        "rounds.count": 4,
        "tasks.wine.partition": {"kind": "pathological", "classes": 1, "minimum": 1},
        "clients.count": 3,
    }
    shared = play_small({**changes, "tasks.wine.label-space": "shared"}, name="shared")
    own = play_small({**changes, "tasks.wine.label-space": "own"}, name="own")

    servers = [[record["tasks"]["wine"]["server"] for record in played.records] for played in (shared, own)]
    assert servers[0] == servers[1]
    assert servers[0][-1]["accuracy"] > 0.8


def test_local_exchanges_nothing(play_small: Play) -> None:
    played = play_small({"algorithm.name": "local"})

    assert all(state.tasks["wine"].knowledge is None for state in played.states)
    assert all(record["tasks"]["wine"]["server"] == {} for record in played.records)
    assert {key.split(".")[0] for key in played.records[2]["tasks"]["wine"]["clients"]["client-0"]} == {"trained"}


# Tasks and samples --------------------------------------------------------------------------------------------------

TWO_TASKS: dict[str, Any] = {
    "tasks.wine.clients": [0, 1, 2],
    "tasks.digits": {
        "kind": "image",
        "source": "digits",
        "models": ["linear-softmax", "mlp-small"],
        "proxy": {"samples": 50},
        "private": 200,
        "test": 60,
        "clients": [1, 2, 3],
    },
}


def test_several_tasks_in_one_run(play_small: Play) -> None:
    played = play_small(TWO_TASKS)

    roster = played.folder.config()["roster"]
    assert {client: sorted(tasks) for client, tasks in roster.items()} == {
        "client-0": ["wine"],
        "client-1": ["digits", "wine"],
        "client-2": ["digits", "wine"],
        "client-3": ["digits"],
    }
    for record in played.records:
        assert list(record["tasks"]["wine"]["clients"]) == ["client-0", "client-1", "client-2"]
        assert list(record["tasks"]["digits"]["clients"]) == ["client-1", "client-2", "client-3"]
    tasks = played.states[-1].tasks
    assert soft(tasks["wine"].knowledge).values.shape == (40, 3)
    assert soft(tasks["digits"].knowledge).values.shape == (50, 10)


def test_a_task_that_nobody_spoke_about_keeps_what_it_had(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 2 and number_of(context) != 3:
            raise RuntimeError("away")
        return inner(message, context)

    played = play_small({**TWO_TASKS, "clients.quorum": 0.25}, tamper=tamper)

    assert played.records[2]["accepted"] == ["client-3"]
    before, after = played.states[1].tasks, played.states[2].tasks
    assert same_knowledge(before["wine"].knowledge, after["wine"].knowledge)
    assert not same_knowledge(before["digits"].knowledge, after["digits"].knowledge)


def test_label_spaces_meet_by_name(play_small: Play) -> None:
    changes = {
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
        "teacher.kind": "model",
    }
    played = play_small(changes)

    roster = played.folder.config()["roster"]
    known = {client: tuple(tasks["wine"]["classes"]) for client, tasks in roster.items()}
    assert all(len(classes) == 2 for classes in known.values())
    assert set(itertools.chain(*known.values())) == {"class_0", "class_1", "class_2"}
    assert soft(played.states[1].tasks["wine"].knowledge).classes == ("class_0", "class_1", "class_2")
    for client, classes in known.items():
        measures = played.records[2]["tasks"]["wine"]["clients"][client]
        assert len(measures["trained.class-accuracy"]) == len(classes)
    assert played.records[2]["rejected"] == []


def test_each_round_is_about_its_own_proxy_samples(play_small: Play) -> None:
    asked: dict[int, set[tuple[int, ...]]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND:
            samples = records.read_order(message.content).tasks["wine"].samples
            asked.setdefault(round_of(message), set()).add(tuple(samples.tolist()))
        return inner(message, context)

    played = play_small({"tasks.wine.proxy": {"samples": 40, "per-round": 15}}, tamper=tamper)

    drawn = {}
    for step in (1, 2):
        (drawn[step],) = asked[step]  # the same for everybody
        assert len(set(drawn[step])) == 15
        assert list(drawn[step]) == sorted(drawn[step])
        assert soft(played.states[step].tasks["wine"].knowledge).samples.tolist() == list(drawn[step])
    assert drawn[1] != drawn[2]


# Teachers -----------------------------------------------------------------------------------------------------------


def test_a_teacher_model_answers_in_place_of_the_consensus(play_small: Play) -> None:
    consensus = play_small({"rounds.count": 1}, name="consensus")
    model = play_small({"rounds.count": 1, "teacher.kind": "model", "teacher.epochs": 3}, name="model")

    told = soft(model.states[1].tasks["wine"].knowledge)
    assert model.records[1]["tasks"]["wine"]["clients"] == consensus.records[1]["tasks"]["wine"]["clients"]
    assert not same_knowledge(told, consensus.states[1].tasks["wine"].knowledge)
    state = model.states[1].tasks["wine"]
    spec = TabularTask(source="wine").load(None)
    assert spec.classes == told.classes
    assert any(not torch.equal(value, state_before(model, name)) for name, value in state.model.items())
    # What is measured of the consensus is the consensus, and of the teacher the teacher.
    before, after = (played.records[1]["tasks"]["wine"]["server"] for played in (consensus, model))
    assert before["consensus.accuracy"] == after["consensus.accuracy"]
    assert "accuracy" not in before
    assert 0 <= after["accuracy"] <= 1


def state_before(played: Any, name: str) -> torch.Tensor:
    found: RunState = played.states[0]
    return found.tasks["wine"].model[name]


def test_a_pretrained_teacher_teaches_in_the_first_round(play_small: Play, small: Small, tmp_path: Path) -> None:
    trained = play_small({"algorithm.name": "central", "rounds.count": 4, "tasks.wine.teacher": "mlp-small"}, name="c")
    own = simulated(small(), None)["wine"]
    model = build_model("mlp-small", own.spec, seed=0)
    model.load_state_dict(dict(trained.states[-1].tasks["wine"].model))
    weights = tmp_path / "teacher-wine.safetensors"
    save_weights(model, weights)

    played = play_small({"teacher.kind": "pretrained", "teacher.path": str(tmp_path / "teacher-{task}.safetensors")})

    first = soft(played.states[0].tasks["wine"].knowledge)
    with torch.no_grad():
        expected = torch.softmax(model.eval()(own.proxy.inputs), -1).numpy()
    np.testing.assert_allclose(first.values, expected, rtol=1e-6, atol=1e-7)
    measures = played.records[1]["tasks"]["wine"]["clients"]
    assert all("distilled.accuracy" in one for one in measures.values())
    server = [record["tasks"]["wine"]["server"]["accuracy"] for record in played.records]
    assert server[0] == trained.records[-1]["tasks"]["wine"]["server"]["accuracy"]
