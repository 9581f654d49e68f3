"""The supervisor, with `sleep` in place of Flower's processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedstill.server.deploy.supervisor import Identity, Wanted, began, children, end, read_state, write_wanted

SLEEP = ("sleep", "300")


def until(there: Callable[[], Any], within: float = 15) -> Any:
    deadline = time.monotonic() + within
    while not (found := there()):
        assert time.monotonic() < deadline, f"not within {within:g} s"
        time.sleep(0.05)
    return found


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One with two processes."""
    write_wanted(tmp_path, [Wanted("one", SLEEP), Wanted("two", SLEEP)])
    process = subprocess.Popen([sys.executable, "-m", "fedstill.server.deploy.supervisor", str(tmp_path)])
    try:
        until(lambda: both(tmp_path))
        yield process
    finally:
        process.terminate()
        process.wait(30)


def both(folder: Path) -> list[Identity]:
    """The two processes, if both run."""
    found = [one for one in read_state(folder).processes.values() if one is not None and one.alive()]
    return found if len(found) == 2 else []


def running(folder: Path, name: str) -> Identity | None:
    one = read_state(folder).processes.get(name)
    return one if one is not None and one.alive() else None


def test_a_process_that_dies_is_started_again_and_the_other_is_left_alone(
    supervisor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = both(tmp_path)
    os.kill(one.pid, signal.SIGKILL)
    again = until(lambda: running(tmp_path, "one") if running(tmp_path, "one") != one else None)
    assert again.pid != one.pid
    assert read_state(tmp_path).starts == {"one": 2, "two": 1}
    assert running(tmp_path, "two") == two


def test_sighup_takes_what_is_wanted_now(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = both(tmp_path)
    write_wanted(tmp_path, [Wanted("two", SLEEP), Wanted("three", SLEEP)])
    supervisor.send_signal(signal.SIGHUP)
    until(lambda: running(tmp_path, "three"))
    assert not one.alive()
    assert running(tmp_path, "two") == two
    assert set(read_state(tmp_path).processes) == {"two", "three"}


def test_a_command_that_changed_is_played_anew(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = both(tmp_path)
    write_wanted(tmp_path, [Wanted("one", SLEEP, {"CHANGED": "1"}), Wanted("two", SLEEP)])
    supervisor.send_signal(signal.SIGHUP)
    again = until(lambda: running(tmp_path, "one") if running(tmp_path, "one") != one else None)
    assert b"CHANGED=1" in Path(f"/proc/{again.pid}/environ").read_bytes()
    assert running(tmp_path, "two") == two


def test_sigterm_ends_them_all_and_nothing_else(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    ours = both(tmp_path)
    other = subprocess.Popen(SLEEP)
    try:
        supervisor.terminate()
        assert supervisor.wait(30) == 0
        assert not any(one.alive() for one in ours)
        assert other.poll() is None
        assert not read_state(tmp_path).running
    finally:
        other.kill()
        other.wait()


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path, supervisor: subprocess.Popen[bytes]) -> None:
    write_wanted(tmp_path, [Wanted("one", SLEEP), Wanted("two", SLEEP), Wanted("none", (str(tmp_path / "program"),))])
    supervisor.send_signal(signal.SIGHUP)
    log = tmp_path / "none.log"
    until(lambda: log.is_file() and log.read_text().count("No such file") >= 2)
    assert len(both(tmp_path)) == 2
    (tmp_path / "program").write_text("#!/bin/sh\nexec sleep 300\n")
    (tmp_path / "program").chmod(0o755)
    until(lambda: running(tmp_path, "none"))


def test_a_process_that_takes_no_sigterm_is_killed() -> None:
    stubborn = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; sleep 300 & wait; wait"], stdout=subprocess.PIPE
    )
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    one = Identity(stubborn.pid, began(stubborn.pid))
    started = [Identity(pid, began(pid)) for pid in until(lambda: children(stubborn.pid))]
    end([one], grace=0.5)
    assert stubborn.wait(10) == -signal.SIGKILL
    assert not any(each.alive() for each in started)
    stubborn.stdout.close()


def test_an_id_that_another_process_has_now_is_not_signalled() -> None:
    other = subprocess.Popen(SLEEP)
    try:
        stranger = Identity(other.pid, began(other.pid) - 1)
        assert not stranger.alive()
        stranger.signal(signal.SIGKILL)
        end([stranger], grace=0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_state_that_cannot_be_read_is_no_process(tmp_path: Path) -> None:
    assert read_state(tmp_path).processes == {}
    (tmp_path / "state.json").write_text("{")
    assert not read_state(tmp_path).running
