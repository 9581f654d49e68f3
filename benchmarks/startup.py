"""How long one waits: from `fedstill simulate` to the first client's training, and for `fedstill --help`.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

_TO_FIRST_TRAINING = """
import os, sys, time
from fedstill.client import work

def first(*_):
    print(time.time() - float(os.environ["BEGUN"]), flush=True)
    os._exit(0)

work.Worker.alone = work.Worker.round = first
from fedstill.simulations.cli import main
sys.argv = ["fedstill", "simulate", "digits", "--run-dir", sys.argv[1]]
main()
"""


def to_first_training() -> float:
    """Seconds from the start of a process that runs `fedstill simulate digits` to its first client's training."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, "-c", _TO_FIRST_TRAINING, os.path.join(place, "run")],
            env={**os.environ, "BEGUN": str(time.time())},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout.splitlines()[-1])


def to_help() -> float:
    """Seconds of `fedstill --help`."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", "from fedstill.simulations.cli import main; main()", "--help"]
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    table = Table(title="Waiting, seconds", title_justify="left")
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, measure in (("simulate digits → first training", to_first_training), ("--help", to_help)):
        measure()  # once, so that files are in memory
        taken = [measure() for _ in range(5)]
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(taken), min(taken), max(taken))))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
