"""Methods side by side on one scenario, over seeds of partition and initialisation.

    python benchmarks/accuracy.py fashion --seeds 1 2 3
    python benchmarks/accuracy.py heart --seeds 1 2 3 4 5

Every method gets the same data, the same students and the same number of steps on private data. "local" is the floor,
"central" the ceiling: the teacher's architecture, trained on all private data for as many epochs as a client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

METHODS = ("local", "fedmd", "dsfl", "central")


def played(job: tuple[str, str, int, Path, tuple[str, ...]]) -> dict[str, Any]:
    """One run: its figures."""
    from fedstill.common.scenario import parse
    from fedstill.common.sources import override, read_table, value_of
    from fedstill.server.folder import new_folder
    from fedstill.server.summary import client_measures, mean, number, summary
    from fedstill.simulations.run import simulate

    scenario_name, method, seed, data_dir, words = job
    changes = {key: value_of(value) for key, _, value in (word.partition("=") for word in words)}
    changes |= {"algorithm.name": method, "seed": seed, "alone": False}
    scenario = parse(override(read_table(scenario_name), changes))
    with tempfile.TemporaryDirectory() as place:
        folder = new_folder(Path(place) / "run", scenario, data_dir=data_dir)
        simulate(scenario, folder, data_dir=data_dir)
        found = summary(folder)
        records = folder.records()
    task = found.tasks[0]
    own = client_measures(records[-1:], task.name, f"final.own-{task.measure}")
    after = [client.after for client in task.clients if client.after is not None]
    return {
        "method": method,
        "seed": seed,
        "clients": task.after,
        "worst": min(after, default=None),
        "own": mean(number(value) for value in own.values()),
        "teacher": task.teacher,
        "kilobytes": (found.round_up + found.round_down) / 1000,
        "seconds": found.seconds,
    }


def cell(values: list[float | None]) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    there = [100 * value for value in values if value is not None]
    if not there:
        return ""
    return f"{statistics.mean(there):.1f}" + (f" ± {statistics.stdev(there):.1f}" if len(there) > 1 else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each run")
    options = parser.parse_args()
    jobs = [
        (options.scenario, method, seed, options.data_dir, tuple(options.changes))
        for seed in options.seeds
        for method in options.methods
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(played, jobs))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title=f"{options.scenario}: accuracy in per cent, seeds {options.seeds}", title_justify="left")
    table.add_column("method")
    for heading in ("clients", "worst client", "clients on own data", "teacher", "kB a client and round", "seconds"):
        table.add_column(heading, justify="right")
    for method in options.methods:
        rows = [result for result in results if result["method"] == method]
        table.add_row(
            method,
            *(cell([row[key] for row in rows]) for key in ("clients", "worst", "own", "teacher")),
            f"{statistics.mean(row['kilobytes'] for row in rows):.1f}",
            f"{statistics.mean(row['seconds'] for row in rows):.0f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
