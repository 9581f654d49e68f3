from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from numpy.typing import NDArray
from small_runs import (
    NAMES,
    Play,
    Spoil,
    number_of,
    round_of,
    same_knowledge,
    spoiling,
)

from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import Reason
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import ALONE, FINISH, ROUND
from fedstill.server.admission import Rejection
from fedstill.server.rounds import why
from fedstill.simulations.engine import LocalGrid


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
