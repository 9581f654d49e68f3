"""Query strategies side by side: which proxy samples are worth their bytes.

    python benchmarks/proxy_budget.py digits --per-round 40 --methods fedstill dsfl --set 'teacher={kind="consensus"}'
    python benchmarks/proxy_budget.py fashion --per-round 200 --set tasks.fashion.partition.alpha=0.1 --data-dir DIR

Every strategy gets the same data, students and number of samples a round, on the seeds of `fedstill compare`.
"Bytes" are those of all clients and rounds, both ways.
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

from fedstill.common.registry import QUERIES
from fedstill.common.scenario import parse
from fedstill.common.sources import override, read_table, value_of
from fedstill.server.folder import RunFolder
from fedstill.simulations.compare.figures import figures
from fedstill.simulations.compare.plan import plan
from fedstill.simulations.compare.work import play_all, run_path


def played(options: argparse.Namespace, choose: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of every method and seed with one strategy, task by task."""
    tasks = parse(override(read_table(options.scenario), changes)).tasks
    own = {f"tasks.{name}.proxy.per-round": options.per_round for name in tasks}
    own |= {f"tasks.{name}.proxy.choose": choose for name in tasks}
    wanted = plan([options.scenario], options.methods, options.seeds, changes | own)
    if wanted.unfit:
        raise SystemExit("; ".join(f"{one.method}: {one.reason}" for one in wanted.unfit))
    with tempfile.TemporaryDirectory() as place:
        outcomes = play_all(wanted, Path(place), data_dir=options.data_dir, workers=options.workers)
        rows = []
        for outcome in outcomes:
            if outcome.state != "finished":
                raise SystemExit(f"{outcome.cell.name}: {outcome.reason}")
            found = figures(outcome.cell, RunFolder(run_path(Path(place), outcome.cell)))
            rows += [
                {
                    "choose": choose,
                    "method": one.method,
                    "seed": one.seed,
                    "task": one.task,
                    "clients": one.clients,
                    "worst": one.worst,
                    "bytes": one.up + one.down,
                }
                for one in found
            ]
    return rows


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    there = [100 * value for value in values]
    return f"{statistics.mean(there):.1f}" + (f" ± {statistics.stdev(there):.1f}" if len(there) > 1 else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("--per-round", type=int, required=True, help="proxy samples of a round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=["fedstill"])
    parser.add_argument("--choose", nargs="+", choices=QUERIES.names(), default=list(QUERIES.names()))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each run")
    options = parser.parse_args()
    pairs = (word.partition("=") for word in options.changes)
    changes = {"alone": False} | {key: value_of(value) for key, _, value in pairs}
    results: list[dict[str, Any]] = []
    for choose in options.choose:
        results += played(options, choose, changes)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    title = f"{options.scenario}: {options.per_round} proxy samples a round, in per cent, seeds {options.seeds}"
    table = Table(title=title, title_justify="left")
    for heading in ("method", "task", "strategy"):
        table.add_column(heading)
    for heading in ("clients", "worst client", "− random", "kB"):
        table.add_column(heading, justify="right")
    for method in options.methods:
        for task in dict.fromkeys(row["task"] for row in results):
            own = [row for row in results if (row["method"], row["task"]) == (method, task)]
            by = {choose: [row for row in own if row["choose"] == choose] for choose in options.choose}
            for choose, rows in by.items():
                gains = [
                    row["clients"] - other["clients"]
                    for row, other in zip(rows, by.get("random", []), strict=False)
                    if choose != "random"
                ]
                table.add_row(
                    method,
                    task,
                    choose,
                    spread([row["clients"] for row in rows]),
                    spread([row["worst"] for row in rows]),
                    spread(gains) if gains else "",
                    f"{statistics.mean(row['bytes'] for row in rows) / 1000:.1f}",
                )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
