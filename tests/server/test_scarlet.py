"""SCARLET between the sides: who is asked and told about what, and how many bytes that takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedstill.common import records
from fedstill.common.algorithms.scarlet import Scarlet
from fedstill.common.codecs.raw import Raw
from fedstill.common.errors import ConfigError, QuorumError
from fedstill.common.knowledge import Contribution, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import NO_SAMPLES, ROUND, Method, Order, TaskOrder
from fedstill.common.packing import content_bytes
from fedstill.server import telling

Play = Callable[..., Any]


def labels(samples: list[int], values: Any) -> SoftLabels:
    return SoftLabels("categorical", ("a", "b"), np.array(samples, dtype=np.int64), np.array(values, dtype=np.float32))


def side(number: int, samples: list[int], memory: dict[str, Any]) -> Any:
    spec = SimpleNamespace(classes=("a", "b"))
    return SimpleNamespace(round=number, samples=np.array(samples), memory=memory, spec=spec)


def test_by_hand() -> None:
    """Two clients, β = 2, D = 2: sample 0 is asked about in rounds 1 and 3, sample 2 in round 2 alone."""
    memory: dict[str, Any] = {}
    method = Scarlet(exponent=2.0, duration=2)
    first = side(1, [0, 1], memory)
    assert method.due(first).tolist() == [0, 1]
    answers = [labels([0, 1], [[0.8, 0.2], [1, 0]]), labels([0, 1], [[0.4, 0.6], [0, 1]])]
    told = method.merge(first, [Contribution(str(place), 1, one) for place, one in enumerate(answers)])
    # mean (0.6, 0.4), squares 0.36 : 0.16
    np.testing.assert_allclose(told.values, np.array([[0.36 / 0.52, 0.16 / 0.52], [0.5, 0.5]]), rtol=1e-6)

    second = side(2, [0, 2], memory)
    assert method.due(second).tolist() == [2]
    told = method.merge(second, [Contribution("0", 1, labels([2], [[0, 1]]))])
    assert told.samples.tolist() == [0, 2]
    np.testing.assert_allclose(told.values, np.array([[0.36 / 0.52, 0.16 / 0.52], [0, 1]]), rtol=1e-6)

    third = side(3, [0, 2], memory)
    assert method.due(third).tolist() == [0]
    told = method.merge(third, [Contribution("0", 1, labels([0], [[1, 0]]))])
    assert told.values.tolist() == [[1, 0], [0, 1]]


def test_the_oldest_are_asked_for_if_none_has_expired() -> None:
    """Of two labels one, which is more than one in nine."""
    memory: dict[str, Any] = {}
    method = Scarlet(duration=9)
    method.merge(side(1, [0, 1], memory), [Contribution("0", 1, labels([0, 1], [[1, 0], [1, 0]]))])
    method.merge(side(2, [2], memory), [Contribution("0", 1, labels([2], [[1, 0]]))])
    assert method.due(side(3, [1, 2], memory)).tolist() == [1]


@pytest.mark.parametrize("wrong", [{"exponent": 0.0}, {"duration": 0}, {"distil_epochs": 0}])
def test_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Scarlet(**wrong)


def test_who_holds_what() -> None:
    one, two = labels([0, 1], [[1, 0], [1, 0]]), labels([0, 1], [[1, 0], [0, 1]])

    def after(told: Any, **changes: Any) -> Any:
        usual: dict[str, Any] = {"heard": None, "clients": [], "lost": [], "knowledge": None, "size": 3}
        return telling.after(told, **(usual | changes))

    told = after({}, knowledge=one, step=1)
    assert telling.remembered(told, "x", one).tolist() == []
    # Both hear it; then sample 1 changes, which x is told, while y is absent.
    told = after(told, heard=one, clients=["x", "y"], knowledge=two, step=2)
    assert telling.remembered(told, "x", two).tolist() == [0]
    told = after(told, heard=two, clients=["x"], knowledge=two, step=3)
    assert telling.remembered(told, "x", two).tolist() == [1]  # nothing is new: one row travels all the same
    assert telling.remembered(told, "y", two).tolist() == [0]
    assert telling.remembered(told, "z", two).tolist() == []
    told = after(told, heard=labels([1], [[0, 1]]), clients=["x"], lost=["x"], step=4)
    assert telling.remembered(told, "x", two).tolist() == [1]


def test_labels_differ_by_what_is_heard_of_new_classes() -> None:
    told = telling.after({}, heard=None, clients=[], lost=[], knowledge=labels([0], [[1, 0]]), step=1, size=1)
    wide = SoftLabels("categorical", ("b", "a", "c"), np.array([0]), np.array([[0, 1, 0]], np.float32))
    told = telling.after(told, heard=None, clients=[], lost=[], knowledge=wide, step=2, size=1)
    assert told["labels.rounds"].tolist() == [1]


# Runs ----------------------------------------------------------------------------------------------------------------


def plan(duration: int, **changes: Any) -> dict[str, Any]:
    return {
        "algorithm": {"name": "scarlet", "duration": duration},
        "tasks.wine.models": ["mlp-small"],
        "rounds.count": 6,
        **changes,
    }


def traffic(played: Any, way: str) -> list[int]:
    return [int(record["bytes"][way]) for record in played.records]


def final(played: Any) -> SoftLabels:
    told = played.states[-1].tasks["wine"].knowledge
    assert isinstance(told, SoftLabels)
    return told


@pytest.mark.parametrize(("codec", "width"), [("raw", 12), ("fp16", 6)])
def test_cached_labels_are_not_asked_for(codec: str, width: int, play_small: Play) -> None:
    """All 90 samples in each round, D = 3: after the first round 30 are asked for, whose ids the server knows."""
    more = {"codec": codec, "tasks.wine.proxy.samples": 90}
    sizes: dict[int, dict[int, int]] = {1: {}, 3: {}}

    def played(duration: int) -> Any:
        def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
            reply = inner(message, context)
            if message.metadata.message_type == ROUND:
                number = cast(int, message.content.config_records["fedstill"]["round"])
                labels = reply.content.array_records["knowledge.wine"]["values"]
                sizes[duration][number] = sizes[duration].get(number, 0) + labels.numpy().nbytes
            return reply

        return play_small(plan(duration, **more), tamper=tamper, name=str(duration))

    full, kept = played(1), played(3)

    assert [record["rejected"] for record in kept.records] == [[]] * 8
    assert len(final(kept).samples) == 90
    assert traffic(kept, "up")[1] == traffic(full, "up")[1]
    saved = len(kept.records[1]["accepted"]) * 60 * width
    assert [sizes[1][number] - sizes[3][number] for number in range(1, 7)] == [0, *[saved] * 5]
    for before, now in zip(traffic(full, "up")[2:7], traffic(kept, "up")[2:7], strict=True):
        # Packing makes the labels that were saved smaller, too: the surer they are, the more.
        assert saved / 2 < before - now <= 1.1 * saved


def test_remembered_labels_do_not_travel() -> None:
    """Of 1,000 labels of ten classes 700 are remembered: 40 bytes each are saved, and some bits of each id spent."""
    values = np.full((1000, 10), 0.1, np.float32)
    classes = tuple("abcdefghij")
    knowledge = SoftLabels("categorical", classes, np.arange(1000), values)

    def size(recalled: NDArray[np.int64]) -> int:
        task = TaskOrder("digest", np.arange(1000), knowledge, recalled=recalled)
        method = Method("scarlet", {}, Training(), Raw())
        return content_bytes(records.write_order(Order("run", 3, 9, 1, 1, 2, method, {"pets": task})))

    scattered = np.flatnonzero(np.arange(1000) % 10 < 7)
    assert size(NO_SAMPLES) - size(scattered) == pytest.approx(700 * 40 - 1000 * 3 / 8, abs=400)


def test_absent_clients_are_told_what_they_missed(play_small: Play) -> None:
    """With half of the clients in a round, everybody learns from the same labels as if all were sent."""
    changes = plan(2, **{"clients.cohort": 0.5, "tasks.wine.proxy.per-round": 20})
    cached = play_small(changes, name="kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scarlet, "recalls", False)
        sent = play_small(changes, name="sent")

    assert [record["rejected"] for record in cached.records] == [[]] * 8
    assert [record["tasks"] for record in cached.records] == [record["tasks"] for record in sent.records]
    np.testing.assert_array_equal(final(cached).values, final(sent).values)
    # The wire had fewer labels on it.
    told = cached.states[-1].tasks["wine"].recalled
    assert (told["client.client-0"] >= 0).any()
    assert traffic(cached, "down") != traffic(sent, "down")


def test_an_interrupted_run_goes_on_with_the_same_numbers(play_small: Play) -> None:
    changes = plan(3, **{"clients.cohort": 0.75, "clients.quorum": 1.0, "rounds.attempts": 1})
    down = True

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        number = message.content.config_records["fedstill"].get("round")
        if down and message.metadata.message_type == ROUND and number == 4:
            raise RuntimeError("no power")
        return inner(message, context)

    clean = play_small(changes, name="cln")
    with pytest.raises(QuorumError):
        play_small(changes, tamper=tamper)
    down = False
    resumed = play_small(changes)

    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]
    assert [record["bytes"] for record in resumed.records] == [record["bytes"] for record in clean.records]
    np.testing.assert_array_equal(final(resumed).values, final(clean).values)


def test_a_client_that_lost_its_cache_is_told_all(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        number = message.content.config_records["fedstill"].get("round")
        if message.metadata.message_type == ROUND and number == 3 and context.node_config["partition-id"] == 1:
            for path in (Path(str(context.node_config["store"])) / "client-1").glob("student-*"):
                path.unlink()
        return inner(message, context)

    played = play_small(plan(3), tamper=tamper)
    assert [record["rejected"] for record in played.records] == [[]] * 8
    assert played.records[3]["restarted"] == ["client-1"]
    told = played.states[-1].tasks["wine"].recalled
    assert torch.equal(told["client.client-1"], told["client.client-0"])


def test_a_codec_in_context_goes_along(play_small: Play) -> None:
    pytest.importorskip("constriction")
    played = play_small(plan(2, codec="sqrtp", **{"clients.cohort": 0.5}))
    assert [record["rejected"] for record in played.records] == [[]] * 8
