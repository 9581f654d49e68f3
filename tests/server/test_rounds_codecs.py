from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from small_runs import (
    NAMES,
    Play,
    number_of,
    round_of,
    same_knowledge,
)

from fedstill.common.codecs import sqrtp
from fedstill.common.codecs.sqrtp import SqrtP
from fedstill.common.errors import QuorumError
from fedstill.common.messages import ROUND

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
