"""What a small device needs: MB installed and resident, and how long a client process gets ready for a message.

    python benchmarks/edge.py                       # memory and seconds, with the packages of this Python
    python benchmarks/edge.py --install DIR         # MB installed too: makes two environments in DIR, and uses them

A student of 80,602 weights (cnn-small on 28 × 28 images) and 2,000 random images. Flower starts a new process for each
message, so a message costs what importing and loading cost; CPU seconds are those of one process, and depend less on
what else the machine does than the wall's. Memory is the proportional set size (PSS: what processes share counts once),
Linux only. "Idle" is a SuperNode with its SuperExec that waits for a SuperLink.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedstill.client.supernode import write_shim

ROOT = Path(__file__).resolve().parents[1]
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}

_ENTRY = "import flwr.supernode.cli.flwr_clientapp\n"
_APP = _ENTRY + "import fedstill.client.app\n"
_LOADING = """
from pathlib import Path
from fedstill.client.store import Store
from fedstill.common.models import build_model
from fedstill.common.task import TaskSpec
import torch
torch.set_num_threads(1)
spec = TaskSpec("t", "categorical", "image", tuple("0123456789"), (1, 28, 28))
model = build_model("cnn-small", spec, seed=1)
_, tensors = Store(Path(PLACE)).load(1)
model.load_state_dict({key.removeprefix("t.model."): value for key, value in tensors.items()})
"""
_STUDENT = _APP + _LOADING
_AS_IT_WAS = _ENTRY + "import torch\nimport fedstill.client.app\n" + _LOADING
"""Torch before our package, which makes its import cheaper."""

_DATA = """
images, labels = torch.randn(2000, 1, 28, 28), torch.zeros(2000, dtype=torch.int64)
from fedstill.common.learning import Training, fit, predict
"""
_TRAINED = _STUDENT + _DATA + "fit(model, images, (labels,), spec.kind.loss, training=Training(), epochs=1, seed=1)\n"
_FIRST_STEP = """
images, labels = torch.randn(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64)
from fedstill.common.learning import Training, fit
fit(model, images, (labels,), spec.kind.loss, training=Training(), epochs=1, seed=1)
"""
_TORCHS_STEP = """
optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
torch.nn.functional.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.zeros(8, dtype=torch.int64)).backward()
optimizer.step()
"""
_PREDICTED = _STUDENT + _DATA + "predict(model, images, training=Training())\n"
_ONNX = """
import numpy as np
from pathlib import Path
from fedstill.client.predicting.session import open_student
student = open_student(Path(PLACE) / "exported")
"""
_ONNX_PREDICTED = _ONNX + (
    "student.answer(np.random.default_rng(0).standard_normal((2000, 1, 28, 28)).astype(np.float32), prepared=True)\n"
)
_TELL = """
import json, os
_words = dict(line.split(":", 1) for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
_peak = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())["VmHWM"]
_times = os.times()
print(json.dumps({
    "pss": int(_words["Pss"].split()[0]) / 1000,
    "peak": int(_peak.split()[0]) / 1000,
    "cpu": _times.user + _times.system,
}))
"""


_WARM = """
import os, sys
from pathlib import Path
from fedstill.client import warm
from fedstill.client.bundle import main
warm.load()
if warm.serve(Path(sys.argv[1]), os.getppid()):
    exec(os.environ["PLAY"])
"""
"""As a node has it, with the code that is measured in place of Flower's ClientApp."""


def measured(python: Path, code: str, place: Path, *, shim: Path | None = None) -> dict[str, float]:
    """MB at the end and at most, and seconds, of a process that runs the code.

    Args:
        python: that runs it.
        code: of Python.
        place: where the student lies.
        shim: program with a process behind it that is warm, which is asked in place of a new one.
    """
    code = f"PLACE = {str(place)!r}\n{code}{_TELL}"
    begun = time.perf_counter()
    done = subprocess.run(
        [shim] if shim else [python, "-c", code],
        env={**os.environ, **FLOWER, "PLAY": code},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**told, "wall": time.perf_counter() - begun}


@contextmanager
def warm(python: Path, place: Path) -> Iterator[tuple[Path, int]]:
    """A program with a process behind it that is warm, and that one's id."""
    folder = place / "warm"
    shim = Path(write_shim(folder)) / "flwr-clientapp"
    with subprocess.Popen([python, "-c", _WARM, folder / "warm.sock"], env={**os.environ, **FLOWER}) as process:
        while not (folder / "warm.sock").exists():
            time.sleep(0.05)
        yield shim, process.pid
        process.terminate()


def tree_pss(process: int) -> float:
    """MB of a process and everything below it."""
    total = 0.0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1000
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += sum(tree_pss(int(child)) for child in (thread / "children").read_text().split())
    except OSError:  # it has just ended
        pass
    return total


def idle(python: Path, place: Path, *, seconds: float = 20.0) -> float:
    """MB of a SuperNode and its SuperExec that wait for a SuperLink."""
    path = f"{python.parent}:{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        [python.parent / "flower-supernode", "--insecure", "--superlink", "127.0.0.1:9"],
        env={**os.environ, **FLOWER, "PATH": path, "FLWR_HOME": str(place / "flwr")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"flower-supernode ended with {process.returncode}")
        return tree_pss(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def prepare(place: Path) -> None:
    """Keep a student of 80,602 weights in a store, and export it."""
    import torch

    from fedstill.client.card import Origin
    from fedstill.client.exporting.export import export
    from fedstill.client.exporting.subject import Subject
    from fedstill.client.store import Store
    from fedstill.common.data.preparation import AsRead
    from fedstill.common.models import build_model
    from fedstill.common.task import TaskSpec
    from fedstill.common.tasks.image import ImageTask
    from fedstill.common.usage import Usage

    spec = TaskSpec("t", "categorical", "image", tuple("0123456789"), (1, 28, 28))
    model = build_model("cnn-small", spec, seed=1).eval()
    Store(place).save(1, {f"t.model.{key}": value for key, value in model.state_dict().items()}, base=0)
    images = torch.randn(100, 1, 28, 28)
    origin = Origin("", "", "", 1, "", "")
    subject = Subject(model, "cnn-small", ImageTask(), spec, Usage(AsRead()), origin, images, images, None, "proxy")
    export(subject, place / "exported")


# Installation --------------------------------------------------------------------------------------------------------


def install(place: Path, name: str, *orders: Sequence[str]) -> Path:
    """An environment in which pip has followed the orders; its Python."""
    python = place / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", place / name], check=True)
    for order in orders:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *order], check=True)
    return python


def sizes(python: Path) -> Counter[str]:
    """MB of each package below site-packages, without pip and setuptools, which a device can take off again."""
    [site] = (python.parent.parent / "lib").glob("python*/site-packages")
    found: Counter[str] = Counter()
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink():
            top = path.relative_to(site).parts[0].partition("-")[0].removesuffix(".py")
            found[top] += path.stat().st_size
    return Counter({top: size / 1e6 for top, size in found.items() if top not in ("pip", "setuptools", "__pycache__")})


def installed(place: Path) -> tuple[Path, Path]:
    """Pythons of a core client and of one that only predicts; prints what they take."""
    constraint = ("--constraint", str(ROOT / "constraints.txt"))
    core = install(place, "core", (*constraint, "torch"), (*constraint, str(ROOT)))
    alone = install(place, "predict", ("numpy", "onnxruntime", "typer"), ("--no-deps", str(ROOT)))
    table = Table(title="Installed, MB", title_justify="left")
    for heading in ("", "all", "of which"):
        table.add_column(heading, justify="right" if heading == "all" else "left")
    for name, python in (("client (core, no extra)", core), ("predicting alone", alone)):
        found = sizes(python)
        largest = ", ".join(f"{top} {size:.0f}" for top, size in found.most_common(7))
        table.add_row(name, f"{sum(found.values()):.0f}", largest)
    Console(width=120).print(table)
    return core, alone


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR", help="make two environments there and measure them")
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind")
    options = parser.parse_args()
    core = alone = Path(sys.executable)
    if options.install:
        core, alone = installed(options.install.resolve())
    place = Path(tempfile.mkdtemp())
    try:
        prepare(place)
        memory(core, alone, place)
        waiting(core, alone, place, options.runs)
    finally:
        shutil.rmtree(place)


def memory(core: Path, alone: Path, place: Path) -> None:
    """Print the table of memory."""
    table = Table(title="Resident, MB", title_justify="left")
    for heading in ("", "at the end", "at most"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("idle: SuperNode and SuperExec", f"{idle(core, place):.0f}", "")
    with warm(core, place) as (_, process):
        table.add_row("and a process that is warm", f"{tree_pss(process):.0f}", "")
    for name, python, code in (
        ("client process with its student", core, _STUDENT),
        ("training, 2,000 images", core, _TRAINED),
        ("predicting with torch, 2,000 images", core, _PREDICTED),
        ("predicting with onnxruntime alone, 2,000 images", alone, _ONNX_PREDICTED),
        ("exported student loaded", alone, _ONNX),
    ):
        told = measured(python, code, place)
        table.add_row(name, f"{told['pss']:.0f}", f"{told['peak']:.0f}")
    Console(width=120).print(table)


def waiting(core: Path, alone: Path, place: Path, runs: int) -> None:
    """Print the table of seconds."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    table = Table(title=f"A process until it is ready, seconds; {runs} runs, load {load}", title_justify="left")
    for heading in ("", "CPU, median", "least", "wall, median", "least", "peak MB"):
        table.add_column(heading, justify="right" if heading else "left")
    kinds = (
        ("import torch", core, "import torch\n"),
        ("Flower's client process", core, _ENTRY),
        ("… and fedstill's app", core, _APP),
        ("… and its student: ready for a message", core, _STUDENT),
        ("… and a training step", core, _STUDENT + _FIRST_STEP),
        ("as it was: ready for a message", core, _AS_IT_WAS),
        ("as it was: and a training step by torch.optim", core, _AS_IT_WAS + _TORCHS_STEP),
        ("exported student in onnxruntime", alone, _ONNX),
    )
    found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in kinds}
    fork = "ready for a message, by a process that is warm"
    found[fork] = []
    with warm(core, place) as (shim, _):
        for _ in range(runs + 1):  # in turn, for the machine's speed drifts
            for name, python, code in kinds:
                found[name].append(measured(python, code, place))
            found[fork].append(measured(core, _STUDENT, place, shim=shim))
    for name in found:
        told = found[name][1:]  # after one run files are in memory
        columns = ([one[key] for one in told] for key in ("cpu", "wall"))
        row = [f"{value:.2f}" for column in columns for value in (statistics.median(column), min(column))]
        table.add_row(name, *row, f"{told[0]['peak']:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
