"""What a network costs a round: a federation of real processes beside the local engine, on the same scenario.

    python benchmarks/round_overhead.py --sites 4 --rounds 5

SuperLink, SuperExec, nginx and a SuperNode for each site, over mutual TLS with node keys, all on this machine. Clients
send and get the weights of an `mlp-medium` of 55 thousand (FedAvg), 221 kB each way. "Compute" is the same round in the
local engine, one process; what is left is Flower's polling, a new process for each client's message, and the network.
Messages are counted in nginx's access log. Both runs have to give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedstill.server.deploy import running

sys.path.append(str(Path(__file__).parents[1] / "tests" / "tools"))

from deployed import COMMAND, new_federation


def changes(sites: int, rounds: int) -> list[str]:
    """The scenario `digits` with one model for all, and nothing to measure beside the rounds."""
    keys = {
        "clients.count": sites,
        "rounds.count": rounds,
        "algorithm.name": "fedavg",
        "tasks.digits.models": ["mlp-medium"],
        "alone": False,
    }
    return [word for key, value in keys.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def steps(folder: Path) -> list[dict[str, Any]]:
    """Committed steps of a run."""
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def simulated(place: Path, sites: int, rounds: int) -> list[dict[str, Any]]:
    """The run in the local engine."""
    words = [*COMMAND, "simulate", "digits", *changes(sites, rounds), "--workers", "1", "--run-dir", str(place)]
    subprocess.run(words, capture_output=True, check=True)
    return steps(place)


def deployed(place: Path, sites: int, rounds: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The run over a network, and how often which path of the SuperLink was asked for by nodes."""
    names = [f"site-{number}" for number in range(sites)]
    federation = new_federation(place, names)
    try:
        running.up(federation, sites=names, data_dir=None)
        words = [*COMMAND, "run", "digits", "--federation", str(place), *changes(sites, rounds), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    finally:
        running.down(federation)
    log = (federation.processes / "nginx-access.log").read_text(encoding="utf-8")
    return steps(Path(json.loads(done.stdout)["folder"])), Counter(re.findall(r'"POST /v1/fleet/(\S+)', log))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        local = simulated(Path(place) / "local", found.sites, found.rounds)
        network, asked = deployed(Path(place) / "federation", found.sites, found.rounds)
    if [one["tasks"] for one in local] != [one["tasks"] for one in network]:
        raise SystemExit("the two runs measured different things")
    title = f"Seconds of a step, {found.sites} sites"
    table = Table(title=title, title_justify="left")
    for heading in ("step", "kB up a client", "compute", "deployed", "overhead"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    overhead = []
    for here, there in zip(local, network, strict=True):
        overhead.append(there["seconds"] - here["seconds"])
        size = there["bytes"]["up"] / found.sites / 1000
        name = f"{there['kind']} {there['step']}"
        table.add_row(name, f"{size:.1f}", f"{here['seconds']:.2f}", f"{there['seconds']:.2f}", f"{overhead[-1]:.2f}")
    rounds = [value for value, one in zip(overhead, network, strict=True) if one["kind"] == "round"]
    console = Console(width=120, highlight=False)
    console.print(table)
    console.print(f"overhead of a round: median {statistics.median(rounds):.1f} s, most {max(rounds):.1f} s")
    sent = asked["push-messages"] / found.sites
    console.print(f"answers of a site: {sent:g} for {len(network)} steps; the two runs measured the same")


if __name__ == "__main__":
    main()
