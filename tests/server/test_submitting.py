"""Following a run: what is asked of Flower, and what is read in the run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from fedstill.common.errors import RunError
from fedstill.common.lock import held, only_process
from fedstill.server.deploy import control
from fedstill.server.deploy.control import FlowerRun
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.submitting import Submitted, follow
from fedstill.server.folder import RunFolder

FEDERATION = Federation(Path("fed"), "heart", "localhost", 8443, 8000, ("north",))


def test_a_run_is_asked_about_when_nobody_plays_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    path.mkdir()
    rounds = path / "rounds.jsonl"
    clock, questions, told = [100.0], [], []

    def play() -> Generator[None, None, None]:
        yield  # nobody plays yet
        with only_process(path):
            for step in range(3):
                rounds.write_text("".join(f'{{"step": {one}}}\n' for one in range(step + 1)))
                yield from [None] * 10
        while True:
            yield

    server = play()

    def ask(_: Federation, number: str) -> FlowerRun:
        assert number == "7"
        questions.append(held(path))
        if len(questions) == 1:
            raise RunError("flwr list", "said nothing", "see run/superlink.log")
        ended = rounds.is_file() and not held(path)
        return FlowerRun("7", "finished:completed" if ended else "running", "", {})

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        next(server)

    monkeypatch.setattr(control, "run", ask)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    with contextlib.closing(server):
        ended = follow(FEDERATION, Submitted("7", RunFolder(path)), lambda record: told.append(record["step"]))

    assert ended.completed
    assert told == [0, 1, 2]
    # Fifteen seconds of work, in which no process was started to ask how it goes.
    assert questions == [False, False]


def test_a_run_that_nobody_plays_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    path.mkdir()
    clock, idle = [100.0], []

    def ask(_: Federation, number: str) -> FlowerRun:
        if clock[0] < 130:
            raise RunError("flwr list", "said nothing", "see run/superlink.log")
        return FlowerRun(number, "finished:stopped" if clock[0] > 400 else "starting", "", {})

    monkeypatch.setattr(control, "run", ask)
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    ended = follow(FEDERATION, Submitted("7", RunFolder(path)), on_idle=lambda why: idle.append((clock[0], why)))

    assert ended.status == "finished:stopped"
    assert idle == [(160.0, "it is starting")]
