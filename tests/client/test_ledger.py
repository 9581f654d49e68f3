from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstill.client.ledger import DAY, Ledger, answer_digest, order_digest
from fedstill.common.codecs.fp16 import FP16
from fedstill.common.codecs.raw import Raw
from fedstill.common.errors import RefusalError, StorageError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Answer, Method, Order, TaskAnswer, TaskOrder

NOON = 1_000_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The machine's clock, which a test may set."""
    now = [NOON]
    monkeypatch.setattr("fedstill.client.ledger.time.time", lambda: now[0])
    return now


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_an_order_that_is_sent_again_counts_once(ledger: Ledger, clock: list[float]) -> None:
    for _ in range(3):
        ledger.begin("run", "round 1", "a", limit=2)
    ledger.begin("run", "round 2", "b", limit=2)
    ledger.begin("run", "round 1", "a", limit=2)

    with pytest.raises(
        RefusalError, match=r"2 orders in the last 24 hours: this client works on 2 \(policy.rounds-per"
    ):
        ledger.begin("run", "round 3", "c", limit=2)
    assert list(ledger.read("run")) == ["round 1", "round 2"]


def test_a_day_is_24_hours_over_all_runs(ledger: Ledger, clock: list[float]) -> None:
    ledger.begin("one", "round 1", "a", limit=2)
    clock[0] += 3600
    ledger.begin("two", "round 1", "a", limit=2)
    clock[0] = NOON + DAY - 1
    with pytest.raises(RefusalError, match="the next one from 2001-09-10 01:46:40 UTC"):
        ledger.begin("three", "round 1", "a", limit=2)
    clock[0] = NOON + DAY
    ledger.begin("three", "round 1", "a", limit=2)
    assert ledger.runs() == ["one", "three", "two"]
    ledger.begin("four", "round 1", "a")  # no limit


def test_a_clock_that_is_set_back_gives_no_second_day(ledger: Ledger, clock: list[float]) -> None:
    ledger.begin("run", "round 1", "a", limit=1)
    clock[0] -= 40 * DAY

    with pytest.raises(RefusalError, match="1 orders in the last 24 hours"):
        ledger.begin("run", "round 2", "b", limit=1)
    clock[0] = NOON + DAY
    ledger.begin("run", "round 2", "b", limit=1)


def test_a_step_is_begun_in_one_way(ledger: Ledger, clock: list[float]) -> None:
    ledger.begin("run", "round 1", "a")

    with pytest.raises(RefusalError, match=r"round 1 of run 'run' with another content: .*2001-09-09 01:46:40 UTC"):
        ledger.begin("run", "round 1", "b")
    ledger.begin("run", "alone 1", "b")
    ledger.begin("run again", "round 1", "b")


def test_a_step_is_answered_in_one_way(ledger: Ledger) -> None:
    ledger.begin("run", "round 1", "a")
    ledger.answered("run", "round 1", "x")
    before = (ledger.folder / "run.jsonl").read_bytes()

    ledger.answered("run", "round 1", "x")
    with pytest.raises(RefusalError, match="a second answer to round 1 of run 'run'"):
        ledger.answered("run", "round 1", "y")

    assert (ledger.folder / "run.jsonl").read_bytes() == before
    assert ledger.read("run")["round 1"].answer == "x"


@pytest.mark.parametrize("cut", range(1, 75, 9))
def test_a_line_that_a_crash_cut_off_was_never_acted_on(ledger: Ledger, clock: list[float], cut: int) -> None:
    ledger.begin("run", "round 1", "a" * 8)
    whole = (ledger.folder / "run.jsonl").read_bytes()
    ledger.begin("run", "round 2", "b" * 8)
    path = ledger.folder / "run.jsonl"
    path.write_bytes(path.read_bytes()[: len(whole) + min(cut, len(whole) - 1)])

    assert list(ledger.read("run")) == ["round 1"]
    ledger.begin("run", "round 3", "c")

    assert list(ledger.read("run")) == ["round 1", "round 3"]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == ["round 1", "round 3"]


def test_a_damaged_line_is_no_new_start(ledger: Ledger) -> None:
    ledger.begin("run", "round 1", "a")
    ledger.begin("run", "round 2", "b")
    path = ledger.folder / "run.jsonl"
    path.write_bytes(b"?" + path.read_bytes()[1:])

    with pytest.raises(StorageError, match="line 1: expected what was asked or answered"):
        ledger.begin("run", "round 3", "c")
    path.write_text('{"step": "round 9", "answer": "x"}\n')
    with pytest.raises(StorageError, match="line 1"):
        ledger.read("run")


def test_a_disk_that_refuses(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.begin("run", "round 1", "a")
    whole = (ledger.folder / "run.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedstill.client.ledger.os.fsync", full)
        with pytest.raises(StorageError, match=r"No space left on device \(make room"):
            ledger.begin("run", "round 2", "b")

    assert (ledger.folder / "run.jsonl").read_bytes() == whole
    ledger.begin("run", "round 2", "b")
    assert list(ledger.read("run")) == ["round 1", "round 2"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fedstill.client.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
fsync = os.fsync
for number in range(20):
    child = os.fork()
    if not child:
        if number % 2:  # half of them die before the disk has the line, half after
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        else:
            os.fsync = lambda stream: (fsync(stream), os.kill(os.getpid(), signal.SIGKILL))
        ledger.begin("run", f"round {number}", "a", limit=20)
    os.waitpid(child, 0)
"""


def test_what_was_begun_is_counted_whenever_the_process_dies(ledger: Ledger) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(ledger.folder)], check=True, timeout=60)

    begun = ledger.read("run")
    assert {f"round {number}" for number in range(0, 20, 2)} <= set(begun)
    with pytest.raises(RefusalError, match=f"{len(begun)} orders"):
        ledger.begin("run", "one more", "a", limit=len(begun))


# What counts as the same ----------------------------------------------------------------------------------------------


def order(**changes: Any) -> Order:
    labels = SoftLabels("categorical", ("a", "b"), np.arange(3), np.full((3, 2), 0.5, np.float32))
    task = TaskOrder("digest", np.arange(3), labels)
    method = Method("fedmd", {"temperature": 1.0}, Training(), Raw())
    plain = Order("run", 2, 5, 1, 1, 1, method, {"t": task})
    return replace(plain, **changes)


def _task(**changes: Any) -> dict[str, TaskOrder]:
    return {"t": replace(order().tasks["t"], **changes)}


def _method(**changes: Any) -> Method:
    return replace(order().method, **changes)


OTHER: dict[str, Callable[[], Order]] = {
    "round": lambda: order(round=3),
    "rounds": lambda: order(rounds=6),
    "seed": lambda: order(seed=2),
    "student": lambda: order(version=0),
    "samples": lambda: order(tasks=_task(samples=np.array([0, 2]))),
    "proxy set": lambda: order(tasks=_task(proxy_digest="other")),
    "nothing told": lambda: order(tasks=_task(knowledge=None)),
    "knowledge": lambda: order(
        tasks=_task(knowledge=SoftLabels("categorical", ("a", "b"), np.arange(3), np.array([[1, 0]] * 3, np.float32)))
    ),
    "classes": lambda: order(
        tasks=_task(knowledge=SoftLabels("categorical", ("a", "c"), np.arange(3), np.full((3, 2), 0.5, np.float32)))
    ),
    "one task more": lambda: order(tasks={**_task(), "u": order().tasks["t"]}),
    "algorithm": lambda: order(method=_method(algorithm="dsfl")),
    "option": lambda: order(method=_method(options={"temperature": 2.0})),
    "training": lambda: order(method=_method(training=Training(epochs=9))),
    "codec": lambda: order(method=_method(codec=FP16())),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_order(what: str) -> None:
    assert order_digest(OTHER[what]()) != order_digest(order())


def test_the_same_order() -> None:
    assert order_digest(order()) == order_digest(order(attempt=2))


def answer(**changes: Any) -> Answer:
    knowledge = order().tasks["t"].knowledge
    return Answer("a", "run", 2, 1, 1, {"t": TaskAnswer("digest", 9, **{"knowledge": knowledge, **changes})})


def test_the_same_answer() -> None:
    assert answer_digest(answer()) == answer_digest(replace(answer(), attempt=3))
    assert answer_digest(answer(metrics={"x": float("nan")})) == answer_digest(answer(metrics={"x": float("nan")}))
    assert answer_digest(answer()) != answer_digest(answer(metrics={"x": 1.0}))
    assert answer_digest(answer()) != answer_digest(answer(knowledge=None))
    assert answer_digest(answer()) != answer_digest(replace(answer(), version=0))


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "none").times() == []
    assert os.listdir(tmp_path) == []
