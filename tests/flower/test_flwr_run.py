"""One real run on Flower's own simulation runtime, from `flwr run .` on: SuperLink, SuperExec, Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.sources import from_run_config
from fedstill.server.folder import RunFolder, new_folder
from fedstill.simulations.run import simulate

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"rounds.count": 2, "training.epochs": 1, "teacher.kind": "consensus"}

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Flower at home in a folder of its own, on ports of its own; whatever it starts is ended."""
    first, second = _free_ports()
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(first),
        "FLWR_LOCAL_CONTROL_API_PORT": str(second),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FEDSTILL_STORE": str(tmp_path / "students"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    yield {**os.environ, **own}
    end_processes(own["FLWR_HOME"])


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def processes_of(home: str) -> dict[int, str]:
    """Processes that were started with that FLWR_HOME, and their commands."""
    found = {}
    mark = f"FLWR_HOME={home}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() + b"\0":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended, or is somebody else's
    return {pid: command for pid, command in found.items() if command}


def end_processes(home: str, *, within: float = 20.0) -> dict[int, str]:
    """End them, politely first; gives those that are left."""
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes_of(home):
            try:
                os.kill(pid, signal_)
            except ProcessLookupError:
                continue
        end = time.monotonic() + within
        while processes_of(home) and time.monotonic() < end:
            time.sleep(0.1)
    return processes_of(home)


def flwr(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        ["flwr", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    return done.stdout + done.stderr


def without_time(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in folder.records()]


def test_flwr_run_gives_the_numbers_of_the_local_engine(environment: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "flower" / "run"
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in {**CONFIG, "run-dir": str(run)}.items())

    output = flwr(
        environment,
        "run",
        ".",
        "--stream",
        "--run-config",
        words,
        "--federation-config",
        "num-supernodes=8 client-resources-num-cpus=1",
    )

    # Flower's exit code is 0 whatever happened: what counts is what it lists, and the run folder.
    (listed,) = json.loads(flwr(environment, "ls", "--format", "json"))["runs"]
    assert listed["status"] == "finished:completed", output
    assert "round 2/2" in output
    scenario = from_run_config(CONFIG)
    assert f"After 2 rounds of {scenario.algorithm.name}, the mean accuracy of 8 clients is" in output
    assert RunFolder(run).report.is_file()
    local = new_folder(tmp_path / "local" / "run", scenario, data_dir=None)
    simulate(scenario, local)
    assert without_time(RunFolder(run)) == without_time(local)
    last = Path("checkpoints") / "step-000003.safetensors"
    assert (run / last).read_bytes() == (local.path / last).read_bytes()
    # The students are the same too, wherever they lie.
    students = [
        sorted(path.name for path in folder.rglob("student-000003-*.safetensors"))
        for folder in (tmp_path / "students", local.clients)
    ]
    assert students[0] == students[1]
    assert len(students[0]) == 8
    assert end_processes(environment["FLWR_HOME"]) == {}
