"""Memory of all processes while a thousand simulated clients with an 80,602-weight student each play two rounds.

    python benchmarks/memory.py --data-dir DIR

PSS: memory that processes share counts once. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def pss(process: int) -> int:
    """Proportional set size of a process and everything below it, in bytes."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += sum(pss(int(child)) for child in (thread / "children").read_text().split())
    except OSError:  # it has just ended
        pass
    return total


def peak(clients: int, workers: int, data_dir: Path) -> tuple[int, float]:
    """Peak bytes of all processes, and seconds, of a run of two rounds."""
    settings = {
        "clients.count": clients,
        "rounds.count": 2,
        "alone": "false",
        "algorithm.name": "fedmd",
        "teacher.kind": "consensus",
        "training.epochs": 1,
        "tasks.fashion.models": '["cnn-small"]',
        "tasks.fashion.private": 20 * clients,
        "tasks.fashion.proxy.samples": 100,
        "tasks.fashion.partition.kind": "iid",
        "tasks.fashion.test": 10,
    }
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-c", "from fedstill.simulations.cli import main; main()", "simulate", "fashion"]
        command += [*changes, "--workers", str(workers), "--data-dir", str(data_dir), "--run-dir", f"{place}/run"]
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        most = 0
        while process.poll() is None:
            most = max(most, pss(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise RuntimeError(f"the run ended with {process.returncode}")
        return most, time.monotonic() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with fashion_mnist")
    parser.add_argument("--clients", type=int, default=1000)
    options = parser.parse_args()
    table = Table(title=f"{options.clients:,} clients, cnn-small (80,602 weights), 2 rounds", title_justify="left")
    for heading in ("workers", "peak of all processes, GiB", "seconds"):
        table.add_column(heading, justify="right")
    for workers in (1, 2):
        most, seconds = peak(options.clients, workers, options.data_dir)
        table.add_row(str(workers), f"{most / 2**30:.2f}", f"{seconds:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
