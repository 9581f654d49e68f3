"""Methods side by side on one scenario, over seeds; `fedstill compare`, with the clients' accuracy on their own data.

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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedstill.common.sources import value_of
from fedstill.server.folder import RunFolder
from fedstill.server.summary import client_measures, mean, number, summary
from fedstill.simulations.compare.figures import figures
from fedstill.simulations.compare.plan import Cell, plan
from fedstill.simulations.compare.work import play_all, run_path

METHODS = ("local", "fedmd", "dsfl", "fedstill", "central")


def measured(cell: Cell, folder: RunFolder) -> dict[str, Any]:
    """The figures of one run."""
    found, one = summary(folder), figures(cell, folder)[0]
    own = client_measures(folder.records()[-1:], one.task, f"final.own-{one.measure}")
    return {
        "method": one.method,
        "seed": one.seed,
        "clients": one.clients,
        "worst": one.worst,
        "own": mean(number(value) for value in own.values()),
        "teacher": one.teacher,
        "kilobytes": (found.round_up + found.round_down) / 1000,
        "seconds": one.seconds,
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
    pairs = (word.partition("=") for word in options.changes)
    changes = {"alone": False} | {key: value_of(value) for key, _, value in pairs}
    wanted = plan([options.scenario], options.methods, options.seeds, changes)
    with tempfile.TemporaryDirectory() as place:
        outcomes = play_all(wanted, Path(place), data_dir=options.data_dir, workers=options.workers)
        for outcome in outcomes:
            if outcome.state != "finished":
                raise SystemExit(f"{outcome.cell.name}: {outcome.reason}")
        results = [measured(outcome.cell, RunFolder(run_path(Path(place), outcome.cell))) for outcome in outcomes]
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title=f"{options.scenario}: accuracy in per cent, seeds {options.seeds}", title_justify="left")
    table.add_column("method")
    for heading in ("clients", "worst client", "clients on own data", "teacher", "kB a client and round", "seconds"):
        table.add_column(heading, justify="right")
    for method in options.methods:
        rows = [result for result in results if result["method"] == method]
        if not rows:
            raise SystemExit("; ".join(f"{one.method}: {one.reason}" for one in wanted.unfit))
        table.add_row(
            method,
            *(cell([row[key] for row in rows]) for key in ("clients", "worst", "own", "teacher")),
            f"{statistics.mean(row['kilobytes'] for row in rows):.1f}",
            f"{statistics.mean(row['seconds'] for row in rows):.0f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
