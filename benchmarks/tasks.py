"""What distillation does for each task of each scenario: alone, after it, the teacher, all data in one place.

    python benchmarks/tasks.py digits heart --seeds 1 2 3
    python benchmarks/tasks.py voice-assistant --data-dir DIR

"alone" trains every client's model on its own data for the same number of steps; "after" is that model after the run;
"least gain" the client that gains least; "central" trains the teacher's architecture on all private data for as many
epochs as a client. Mean ± standard deviation over seeds, which change the split, the proxy set and the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("alone", "after", "gain", "least gain", "gained", "teacher", "central")


def played(job: tuple[str, int, bool, Path | None, tuple[str, ...]]) -> list[dict[str, Any]]:
    """One run, with the scenario's method or with all data in one place: a row for each task."""
    from fedstill.common.scenario import parse
    from fedstill.common.sources import override, read_table, value_of
    from fedstill.server.folder import new_folder
    from fedstill.server.summary import summary
    from fedstill.simulations.run import simulate

    name, seed, central, data_dir, words = job
    changes = {key: value_of(value) for key, _, value in (word.partition("=") for word in words)} | {"seed": seed}
    if central:
        changes |= {"algorithm": {"name": "central"}, "alone": False, "training.adaptive": False}
    scenario = parse(override(read_table(name), changes))
    with tempfile.TemporaryDirectory() as place:
        folder = new_folder(Path(place) / "run", scenario, data_dir=data_dir)
        simulate(scenario, folder, data_dir=data_dir)
        found = summary(folder)
    rows = []
    for task in found.tasks:
        row: dict[str, Any] = {"scenario": name, "task": task.name, "measure": task.measure, "seed": seed}
        if central:
            row |= {"central": task.teacher}
        else:
            gains = [client.gain for client in task.clients if client.gain is not None]
            row |= {
                "alone": task.alone,
                "after": task.after,
                "gain": task.gain,
                "least gain": min(gains, default=None),
                "gained": task.gained / task.compared if task.compared else None,
                "teacher": task.teacher,
                "kilobytes": (found.round_up + found.round_down) / 1000,
                "seconds": found.seconds,
            }
        rows.append(row)
    return rows


def cell(values: list[float | None]) -> str:
    """Mean and standard deviation over seeds, in hundredths."""
    there = [100 * value for value in values if value is not None]
    if not there:
        return "–"
    return f"{statistics.mean(there):.1f}" + (f" ± {statistics.stdev(there):.1f}" if len(there) > 1 else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--no-central", action="store_true", help="leave out all data in one place")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each run")
    options = parser.parse_args()
    kinds = (False,) if options.no_central else (False, True)
    jobs = [
        (name, seed, central, options.data_dir, tuple(options.changes))
        for name in options.scenarios
        for seed in options.seeds
        for central in kinds
    ]
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(played, job) for job in jobs]):
            results += done.result()
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    results.sort(key=lambda row: (options.scenarios.index(row["scenario"]), row["seed"]))
    table = Table(title=f"in hundredths, seeds {options.seeds}", title_justify="left")
    for heading in ("scenario", "task", "measure"):
        table.add_column(heading)
    for heading in (*COLUMNS, "kB a client and round", "seconds"):
        table.add_column(heading, justify="right")
    for name, task, measure in dict.fromkeys((row["scenario"], row["task"], row["measure"]) for row in results):
        rows = [row for row in results if (row["scenario"], row["task"]) == (name, task)]
        ours = [row for row in rows if "alone" in row]
        table.add_row(
            name,
            task,
            measure,
            *(cell([row[key] for row in rows if key in row]) for key in COLUMNS),
            f"{statistics.mean(row['kilobytes'] for row in ours):.1f}",
            f"{statistics.mean(row['seconds'] for row in ours):.0f}",
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
