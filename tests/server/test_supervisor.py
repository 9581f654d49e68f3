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

from fedstill.server.deploy.supervisor import Identity, Wanted, began, children, read_state, write_wanted

pytestmark = pytest.mark.slow

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
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
