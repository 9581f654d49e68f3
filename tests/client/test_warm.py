"""A ClientApp by a fork of a process that has everything loaded: arguments, files, exit codes, who ends with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import until

from fedstill.client.supernode import write_shim
from fedstill.common.environment import PROCESSES
from fedstill.server.deploy.supervisor import Identity, began, children

WAITING = """
import os, sys
from pathlib import Path
from fedstill.client import warm
from fedstill.client.bundle import main
if warm.serve(Path(sys.argv[1]), int(sys.argv[2])):
    exec(os.environ["PLAY"])
"""
"""As `warm.main`, with a play in place of Flower's ClientApp."""

PLAY = "print(sys.argv[1:], os.getcwd(), os.getpid(), flush=True); print('said', file=sys.stderr); sys.exit({})"

WAIT = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that a warm one ends with."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def shim(tmp_path: Path, parent: subprocess.Popen[bytes]) -> Iterator[Path]:
    """A program with a warm process behind it."""
    path = Path(write_shim(tmp_path)) / "flwr-clientapp"
    command = [sys.executable, "-c", WAITING, str(tmp_path / "warm.sock"), str(parent.pid)]
    with subprocess.Popen(command) as process:
        until((tmp_path / "warm.sock").exists, 60, "it waits")
        yield path
        process.kill()


def play(shim: Path, code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [shim, *words],
        env={**os.environ, "PLAY": code},
        cwd=shim.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("code", [0, 3])
def test_a_child_has_the_shims_arguments_files_and_folder(shim: Path, code: int) -> None:
    with play(shim, PLAY.format(code), "--token", "a b") as process:
        out, err = process.communicate(timeout=30)
    words, _, rest = out.partition("] ")
    assert words + "]" == "['--token', 'a b']"
    folder, number = rest.split()
    assert Path(folder) == shim.parent
    assert int(number) != process.pid
    assert err == "said\n"
    assert process.returncode == code


def test_each_has_a_process_of_its_own(shim: Path) -> None:
    code = "import builtins; print(hasattr(builtins, 'seen')); builtins.seen = 1"
    for _ in range(2):
        with play(shim, code) as process:
            out, _ = process.communicate(timeout=30)
        assert out == "False\n"


def test_two_at_a_time(shim: Path) -> None:
    with play(shim, WAIT) as first, play(shim, "print('second')") as second:
        assert second.communicate(timeout=30)[0] == "second\n"
        assert first.poll() is None
        first.terminate()
        first.communicate(timeout=30)
    assert first.returncode != 0


def waiting(process: subprocess.Popen[str]) -> Identity:
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    return Identity(pid, began(pid))


def test_a_shim_that_is_killed_takes_its_child_along(shim: Path) -> None:
    with play(shim, WAIT) as process:
        child = waiting(process)
        process.kill()
        until(lambda: not child.alive(), 20, "the child ends")


def test_a_child_that_is_killed_is_an_exit_code(shim: Path) -> None:
    with play(shim, WAIT) as process:
        waiting(process).signal(signal.SIGKILL)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL


def test_sigterm_reaches_the_child(shim: Path) -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); " + WAIT
    with play(shim, code) as process:
        waiting(process)
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 7


def test_it_ends_with_its_parent(shim: Path, parent: subprocess.Popen[bytes]) -> None:
    (warm,) = [pid for pid in children(os.getpid()) if "warm.sock" in Path(f"/proc/{pid}/cmdline").read_text()]
    process = Identity(warm, began(warm))
    parent.kill()
    until(lambda: not process.alive(), 20, "it ends")


def test_half_a_request_harms_nobody(shim: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(shim.parent / "warm.sock"))
        one.send(b"{")
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(shim.parent / "warm.sock"))
        one.send(b"[]\n")
    with play(shim, "print('sound')") as process:
        assert process.communicate(timeout=30)[0] == "sound\n"


def test_without_a_warm_process_the_shim_does_it_itself(tmp_path: Path) -> None:
    program = Path(write_shim(tmp_path)) / "flwr-clientapp"
    done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: flwr-clientapp")


def test_what_is_not_taken_the_shim_does_itself(shim: Path) -> None:
    environment = {**os.environ, **{f"LONG_{number}": "x" * 100_000 for number in range(12)}}
    done = subprocess.run([shim, "--help"], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("usage: flwr-clientapp")


def test_the_real_one_is_flowers_clientapp(tmp_path: Path) -> None:
    program = Path(write_shim(tmp_path)) / "flwr-clientapp"
    code = "import sys, pathlib; from fedstill.client import warm; warm.start(pathlib.Path(sys.argv[1])); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, env={**os.environ, **PROCESSES}
    ) as parent:
        until((tmp_path / "warm.sock").exists, 60, "it waits")
        assert (tmp_path.stat().st_mode & 0o777) == 0o700
        (number,) = children(parent.pid)
        # One thread: what forks must hold no lock of another.
        assert len(list(Path(f"/proc/{number}/task").iterdir())) == 1
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.startswith("usage: flwr-clientapp")
        warm = Identity(number, began(number))
        parent.communicate(b"\n", timeout=20)
        until(lambda: not warm.alive(), 20, "it ends")
