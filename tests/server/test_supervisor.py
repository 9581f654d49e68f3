"""The supervisor: a dead process comes back, what it left behind ends, those of a killed supervisor go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import until

from fedstill.server.deploy.supervisor import (
    Identity,
    Wanted,
    began,
    children,
    end,
    ending,
    read_state,
    write_wanted,
)

SLEEP = ("sleep", "600")
PARENT = (sys.executable, "-c", "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)")

Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a supervisor of some processes; whatever runs is ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def make(*wanted: Wanted) -> subprocess.Popen[bytes]:
        write_wanted(tmp_path, wanted)
        command = [sys.executable, "-m", "fedstill.server.deploy.supervisor", str(tmp_path)]
        started.append(subprocess.Popen(command))
        until(
            lambda: _named(tmp_path) == {one.name for one in wanted} and _by(tmp_path) == started[-1].pid, 20, "state"
        )
        return started[-1]

    yield make
    for one in started:
        one.terminate()
        one.wait()
    for identity in read_state(tmp_path).processes.values():
        if identity is not None:
            identity.signal(signal.SIGKILL)


def _named(folder: Path) -> set[str]:
    return {name for name, one in read_state(folder).processes.items() if one is not None and one.alive()}


def _by(folder: Path) -> int:
    supervisor = read_state(folder).supervisor
    return supervisor.pid if supervisor is not None else 0


def _process(folder: Path, name: str) -> Identity:
    found: Any = read_state(folder).processes[name]
    assert isinstance(found, Identity)
    return found


@pytest.fixture
def supervisor(begin: Begin) -> subprocess.Popen[bytes]:
    """One with two processes."""
    return begin(Wanted("one", SLEEP), Wanted("two", SLEEP))


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
    again = until(lambda: running(tmp_path, "one") if running(tmp_path, "one") != one else None, 20, "it is there")
    assert again.pid != one.pid
    assert read_state(tmp_path).starts == {"one": 2, "two": 1}
    assert running(tmp_path, "two") == two


def test_sighup_takes_what_is_wanted_now(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = both(tmp_path)
    write_wanted(tmp_path, [Wanted("two", SLEEP), Wanted("three", SLEEP)])
    supervisor.send_signal(signal.SIGHUP)
    until(lambda: running(tmp_path, "three"), 20, "it is there")
    assert not one.alive()
    assert running(tmp_path, "two") == two
    assert set(read_state(tmp_path).processes) == {"two", "three"}


def test_a_command_that_changed_is_played_anew(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = both(tmp_path)
    write_wanted(tmp_path, [Wanted("one", SLEEP, {"CHANGED": "1"}), Wanted("two", SLEEP)])
    supervisor.send_signal(signal.SIGHUP)
    again = until(lambda: running(tmp_path, "one") if running(tmp_path, "one") != one else None, 20, "it is there")
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


def test_what_others_need_ends_after_them(begin: Begin, tmp_path: Path) -> None:
    def noting(name: str, *needs: str) -> Wanted:
        script = f"trap 'echo {name} >> notes; exit' TERM; echo >> ready; while :; do sleep 0.05; done"
        return Wanted(name, ("sh", "-c", script), folder=str(tmp_path), needs=needs)

    wanted = [noting("server"), noting("door", "server"), noting("a", "door"), noting("b", "door")]
    assert list(ending(wanted)) == [["a", "b"], ["door"], ["server"]]
    (tmp_path / "ready").touch()
    supervisor = begin(*wanted)
    until(lambda: (tmp_path / "ready").read_text() == 4 * "\n", 20, "they are ready")
    supervisor.terminate()
    assert supervisor.wait(30) == 0
    told = (tmp_path / "notes").read_text().split()
    assert (sorted(told[:2]), told[2:]) == (["a", "b"], ["door", "server"])


def test_those_that_need_each_other_end_side_by_side() -> None:
    one, two = Wanted("one", SLEEP, needs=("two",)), Wanted("two", SLEEP, needs=("one",))
    assert list(ending([one, two, Wanted("three", SLEEP, needs=("elsewhere",))])) == [["three"], ["one", "two"]]
    assert list(ending([])) == []


def test_what_ends_by_itself_is_tried_at_once_when_somebody_asks(begin: Begin, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    two = Wanted("two", ("sh", "-c", f"test -f {mended} || exit 2; sleep 600"))
    supervisor = begin(Wanted("one", SLEEP))
    write_wanted(tmp_path, [Wanted("one", SLEEP), two])
    supervisor.send_signal(signal.SIGHUP)
    # After the fourth time the pause is of four seconds.
    until(lambda: read_state(tmp_path).starts.get("two", 0) >= 4, 30, "it is tried")
    until(lambda: running(tmp_path, "two") is None, 5, "it has ended")
    assert read_state(tmp_path).exits == {"one": None, "two": 2}
    mended.touch()
    supervisor.send_signal(signal.SIGHUP)
    until(lambda: running(tmp_path, "two"), 2, "it runs")


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path, supervisor: subprocess.Popen[bytes]) -> None:
    write_wanted(tmp_path, [Wanted("one", SLEEP), Wanted("two", SLEEP), Wanted("none", (str(tmp_path / "program"),))])
    supervisor.send_signal(signal.SIGHUP)
    log = tmp_path / "none.log"
    until(lambda: log.is_file() and log.read_text().count("No such file") >= 2, 20, "it is there")
    assert len(both(tmp_path)) == 2
    (tmp_path / "program").write_text("#!/bin/sh\nexec sleep 300\n")
    (tmp_path / "program").chmod(0o755)
    until(lambda: running(tmp_path, "none"), 20, "it is there")


def test_a_process_that_takes_no_sigterm_is_killed() -> None:
    stubborn = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; sleep 300 & wait; wait"], stdout=subprocess.PIPE
    )
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    one = Identity(stubborn.pid, began(stubborn.pid))
    started = [Identity(pid, began(pid)) for pid in until(lambda: children(stubborn.pid), 20, "a child")]
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


def test_what_a_dead_process_has_started_ends_before_it_comes_back(begin: Begin, tmp_path: Path) -> None:
    begin(Wanted("parent", PARENT))
    parent = _process(tmp_path, "parent")
    (number,) = until(lambda: children(parent.pid), 20, "a child")
    child = Identity(number, began(number))
    os.kill(parent.pid, signal.SIGKILL)
    until(lambda: _named(tmp_path) and _process(tmp_path, "parent") != parent, 20, "it comes back")
    assert not child.alive()
    assert read_state(tmp_path).starts["parent"] == 2


def test_the_next_supervisor_takes_over_what_is_still_to_run(begin: Begin, tmp_path: Path) -> None:
    first = begin(Wanted("same", SLEEP), Wanted("other", SLEEP), Wanted("gone", SLEEP))
    ran = {name: _process(tmp_path, name) for name in ("same", "other", "gone")}
    first.kill()
    first.wait()
    assert all(one.alive() for one in ran.values())

    begin(Wanted("same", SLEEP), Wanted("other", SLEEP, {"NEW": "1"}))

    assert _process(tmp_path, "same") == ran["same"]
    assert _process(tmp_path, "other") != ran["other"]
    assert not ran["other"].alive()
    assert not ran["gone"].alive()
    os.kill(ran["same"].pid, signal.SIGKILL)
    until(lambda: "same" in _named(tmp_path) and _process(tmp_path, "same") != ran["same"], 20, "it is restarted")


def test_sigterm_ends_what_was_taken_over(begin: Begin, tmp_path: Path) -> None:
    first = begin(Wanted("one", SLEEP))
    ran = _process(tmp_path, "one")
    first.kill()
    first.wait()
    second = begin(Wanted("one", SLEEP))

    second.terminate()
    second.wait(timeout=30)

    assert not ran.alive()


def test_a_process_without_a_beginning_is_none() -> None:
    with subprocess.Popen(["true"]) as done:
        done.wait()
    assert not Identity(done.pid, began(done.pid)).alive()
