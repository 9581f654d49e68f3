"""What a client's work may take, and that one process at a time does it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fedstill.client.resources import within
from fedstill.client.site import Resources
from fedstill.common.errors import Reason, RefusalError, StorageError
from fedstill.common.lock import held, holder, only_process

HOLD = """
import sys, time
from pathlib import Path
from fedstill.common.lock import only_process
with only_process(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def another(folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the folder for so long."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with another(tmp_path / "store", 60) as process:
        with (
            pytest.raises(RefusalError, match=f"process {process.pid} works in it") as caught,
            only_process(tmp_path / "store", patience=0.1),
        ):
            pass
        assert caught.value.reason is Reason.BUSY
        assert str(process.pid) in str(caught.value)


def test_whether_a_lock_is_held_is_seen_without_taking_it(tmp_path: Path) -> None:
    assert not held(tmp_path)
    with only_process(tmp_path):
        assert held(tmp_path)
    assert not held(tmp_path)
    assert holder(tmp_path) == os.getpid()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    with another(tmp_path, 60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

        with only_process(tmp_path, patience=5):
            assert holder(tmp_path) == os.getpid()


def test_a_process_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    with another(tmp_path, 0.3), only_process(tmp_path, patience=30):
        assert holder(tmp_path) == os.getpid()


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"), only_process(tmp_path / "file" / "store"):
        pass
    assert holder(tmp_path) == 0


def test_work_that_takes_too_long_is_stopped() -> None:
    begun = time.monotonic()

    def work() -> None:
        while time.monotonic() < begun + 20:
            torch.zeros(10).sum()

    with pytest.raises(RefusalError, match=r"takes longer than the 0\.1 s") as caught, within(Resources(seconds=0.1)):
        work()

    assert caught.value.reason is Reason.RESOURCES
    assert time.monotonic() - begun < 10
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with within(Resources(seconds=60)):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_work_that_takes_too_much_memory_is_stopped() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")

    with within(Resources(memory=used + 2**28)):
        torch.zeros(2**20)  # 4 MiB are no matter
    with pytest.raises(RefusalError, match="needs more than") as caught, within(Resources(memory=used + 2**28)):
        torch.zeros(2**28)  # 1 GiB
    assert caught.value.reason is Reason.RESOURCES
    with pytest.raises(RefusalError, match="needs more than"), within(Resources(memory=used + 2**28)):
        bytearray(2**30)
    with pytest.raises(RuntimeError, match="something else"), within(Resources(memory=used + 2**28)):
        raise RuntimeError("something else")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_threads() -> None:
    with within(Resources(threads=2)):
        assert torch.get_num_threads() == 2
    with within(Resources()):
        assert torch.get_num_threads() == 1
