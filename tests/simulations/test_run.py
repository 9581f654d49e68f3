"""Runs that are cut off: killed, interrupted, out of disk, damaged. Whatever happened, the numbers stay the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.errors import RunFolderError
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.folder import RunFolder, new_folder, open_folder
from fedstill.simulations.run import simulate

Small = Callable[..., Scenario]

CHANGES = {"rounds.count": 3, "teacher.kind": "model"}

KILLED = """
import os, signal, sys
import sklearn.datasets  # before the forks: it takes a second
from fedstill.client.work import Worker
from fedstill.server import checkpoint
from fedstill.server.folder import RunFolder
from fedstill.simulations import cli, progress, run

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, when):
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **named: die() if when(*args) else original(*args, **named))

def after(owner, name, when):
    original = getattr(owner, name)
    def wrapped(*args, **named):
        result = original(*args, **named)
        return die() if when(*args) else result
    setattr(owner, name, wrapped)

third = lambda worker, step, order: worker.holdings.name == "client-2" and order.round == step
POINTS = {
    "alone": lambda: before(Worker, "alone", lambda worker, order: third(worker, 0, order)),
    "in the middle of a round": lambda: before(Worker, "round", lambda worker, order: third(worker, 2, order)),
    "before the manifest": lambda: before(os, "replace", lambda _, to: str(to).endswith("step-000002.json")),
    "after the checkpoint": lambda: after(checkpoint, "save", lambda _, state: state.step == 2),
    "after the commit": lambda: after(RunFolder, "commit", lambda _, state: state.step == 2),
    "finish": lambda: before(Worker, "finish", lambda worker, order: third(worker, 4, order)),
}
scenario, root = sys.argv[1:]
for number, (point, patch) in enumerate(POINTS.items()):
    child = os.fork()
    if not child:
        patch()
        sys.argv = ["fedstill", "simulate", scenario, "--run-dir", f"{root}/{number}/run"]
        cli.main()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, status)
"""
"""Runs `fedstill simulate` in forked processes, each of which kills itself at another point."""

POINTS = (
    "alone",
    "in the middle of a round",
    "before the manifest",
    "after the checkpoint",
    "after the commit",
    "finish",
)
COMMITTED = {
    "alone": [],
    "in the middle of a round": [0, 1],
    "before the manifest": [0, 1],
    "after the checkpoint": [0, 1],
    "after the commit": [0, 1, 2],
    "finish": [0, 1, 2, 3],
}


def without_time(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in folder.records()]


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Everything that has to be the same in two runs: records, the last checkpoint, the students."""
    last = folder.path / "checkpoints" / "step-000004"
    manifest = json.loads(last.with_suffix(".json").read_text().splitlines()[1])
    del manifest["record"]["seconds"]
    return {
        "records": without_time(folder),
        "tensors": last.with_suffix(".safetensors").read_bytes(),
        "manifest": manifest,
        # A student's file name holds the checksum of its content.
        "students": sorted(path.name for path in folder.clients.glob("*/student-000004-*.safetensors")),
    }


@pytest.fixture(scope="module")
def scenario_file(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "small.toml"
    path.write_text(to_toml(dump(small(CHANGES))))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small: Small) -> RunFolder:
    """A run that nothing happened to. Its name is the others': messages hold it."""
    scenario = small(CHANGES)
    folder = new_folder(tmp_path_factory.mktemp("whole") / "run", scenario, data_dir=None)
    simulate(scenario, folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, scenario_file: Path) -> dict[str, Path]:
    """The run folders of runs that were killed at each of the points."""
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(scenario_file), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {point: root / str(number) / "run" for number, point in enumerate(POINTS)}


def again(path: Path) -> RunFolder:
    folder = open_folder(path)
    simulate(folder.scenario(), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on_to_the_same_end(killed: dict[str, Path], whole: RunFolder, point: str) -> None:
    assert [record["step"] for record in RunFolder(killed[point]).records()] == COMMITTED[point]

    assert outcome(again(killed[point])) == outcome(whole)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(tmp_path: Path, whole: RunFolder, small: Small) -> None:
    scenario = small(CHANGES)
    folder = new_folder(tmp_path / "run", scenario, data_dir=None)

    simulate(scenario, folder, workers=2)

    assert outcome(folder) == outcome(whole)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, small: Small) -> None:
    folder = new_folder(tmp_path / "run", small(), data_dir=None)
    simulate(small(), folder)
    before = {
        path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and "events" not in path.name
    }

    again(folder.path)

    after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and "events" not in path.name}
    assert after == before


@pytest.mark.parametrize("damaged", [(4,), (4, 3)], ids=["the last", "the last two"])
@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, whole: RunFolder, small: Small, damaged: tuple[int, ...], part: str
) -> None:
    scenario = small(CHANGES)
    folder = new_folder(tmp_path / "run", scenario, data_dir=None)
    simulate(scenario, folder)
    for step in damaged:
        path = folder.path / "checkpoints" / f"step-{step:06d}.{part}"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    assert outcome(again(folder.path)) == outcome(whole)


def test_a_run_whose_checkpoints_are_all_damaged_says_so(tmp_path: Path, small: Small) -> None:
    folder = new_folder(tmp_path / "run", small(), data_dir=None)
    simulate(small(), folder)
    for path in (folder.path / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(RunFolderError, match=r"checkpoints of steps \[3, 2, 1\]: expected a sound one") as caught:
        again(folder.path)
    assert caught.value.exit_code == 4


def test_a_torn_last_line_is_written_again(tmp_path: Path, small: Small) -> None:
    folder = new_folder(tmp_path / "run", small(), data_dir=None)
    simulate(small(), folder)
    path = folder.path / "rounds.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines[:-100])
    assert [record["step"] for record in folder.records()] == [0, 1, 2]

    again(folder.path)

    assert path.read_bytes() == lines


def start(scenario: Path, run: Path, *options: str, program: str = "", workers: int = 1) -> subprocess.Popen[str]:
    command = ["simulate", str(scenario), "--run-dir", str(run), "--workers", str(workers), *options]
    code = f"{program}\nimport sys\nfrom fedstill.simulations.cli import main\nsys.argv[0] = 'fedstill'\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, scenario_file: Path, workers: int) -> None:
    run = tmp_path / "run"
    # What a shell starts in the background ignores Ctrl-C, and passes that on to its children: these tests, say.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    endless = ("--set", "rounds.count=2000", "--set", "alone=false")
    with start(scenario_file, run, *endless, program=heed, workers=workers) as process:
        try:
            end = time.monotonic() + 60
            while len(RunFolder(run).records()) < 3 and time.monotonic() < end:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 130
    assert errors.strip() == f"interrupted; go on with: fedstill simulate --resume {run}"
    assert RunFolder(run).restore() is not None


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path: Path, scenario_file: Path, whole: RunFolder) -> None:
    run = tmp_path / "run"
    # No file may grow beyond a limit that the largest one hits in its last step.
    events = max(path.stat().st_size for path in (whole.path / "tensorboard").iterdir())
    lines = (whole.path / "rounds.jsonl").stat().st_size
    place = run / ("rounds.jsonl" if lines > events else "tensorboard")
    largest = max(lines, events) - 500
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, resource.RLIM_INFINITY))"
    process = start(scenario_file, run, program=limit)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 5, errors
    assert "Traceback" not in errors
    kept, message = errors.strip().splitlines()
    assert kept == f"what was committed is kept; go on with: fedstill simulate --resume {run}"
    assert message == f"error: {place}: cannot be written: File too large (check the folder)"
    # A step is committed before trackers hear of it.
    assert [record["step"] for record in RunFolder(run).records()] == list(range(4 if lines > events else 5))
    assert outcome(again(run)) == outcome(whole)
