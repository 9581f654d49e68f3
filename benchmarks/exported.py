"""Students of a run in torch, in onnxruntime, and there in 8-bit integers: bytes, latency, and what is lost.

    python benchmarks/exported.py digits trec --seeds 1 2 3

A scenario is played for `--rounds` rounds; of each architecture the first client's student is exported, and the teacher
if there is one. Latency is the median of single calls with 1 and with 32 samples, on one thread. Measures (the task's
main one) and equal decisions are those on the common test samples, at most 1,000 of them, mean over seeds. Both ways to
find the ranges of integers are shown; "*" marks the one that `fedstill export --int8` takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedstill.client.exporting.export import Exported, export
from fedstill.client.exporting.subject import Place, Subject, student
from fedstill.client.holdings import simulated
from fedstill.client.store import Store
from fedstill.common.errors import FedstillError
from fedstill.common.learning import one_thread
from fedstill.common.scenario import parse
from fedstill.common.sources import override, read_table
from fedstill.server.folder import new_folder
from fedstill.simulations.run import simulate

WAYS = ("static", "dynamic")
HEADINGS = ("model", "form", "kB", "µs, 1", "µs, 32", "measure", "equal %")


def subjects(name: str, seed: int, changes: dict[str, Any], data_dir: Path | None, place: Path) -> Iterator[Subject]:
    """One trained student of each architecture and task of a scenario."""
    table = read_table(name)
    # Clients that weigh what they hear need students trained alone.
    alone = bool(table.get("training", {}).get("adaptive", False))
    scenario = parse(override(table, {**changes, "seed": seed, "alone": alone}))
    folder = new_folder(place / "run", scenario, data_dir=data_dir)
    simulate(scenario, folder, data_dir=data_dir)
    seen = set()
    for number in range(scenario.clients.count):
        holdings = simulated(scenario, number, data_dir)
        step, tensors = Store(folder.clients / holdings.name).load(scenario.rounds.count + 1)
        for task, holding in holdings.tasks.items():
            if (task, holding.model) in seen:
                continue
            seen.add((task, holding.model))
            prefix = f"{task}.model."
            weights = {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
            yield student(holding, weights, Place(name, holdings.name, step), folder=data_dir)


def figures(subject: Subject, place: Path) -> Iterator[dict[str, Any]]:
    """Rows of one student: torch, ONNX, and both ways of integers."""
    plain = export(subject, place / "plain")
    yield row("torch, fp32", plain, exported=False)
    yield row("onnx, fp32", plain)
    chosen = ""
    for way in ("", *WAYS):
        try:
            found = export(subject, place / f"int8 {way}", int8=True, way=way)
        except FedstillError as error:
            yield {"form": f"onnx, int8 {way}", "refused": str(error)}
            continue
        if not way:
            chosen = found.way
        else:
            yield row(f"onnx, int8 {way}{'*' if way == chosen else ''}", found)


def row(form: str, found: Exported, *, exported: bool = True) -> dict[str, Any]:
    """What one form of a model costs and loses."""
    one = found.exported if exported else found.torch
    return {
        "form": form,
        "bytes": one.bytes,
        "latency": [one.latency[batch].median for batch in one.latency],
        "measure": next(iter(one.measures.values()), None),
        "equal": found.agreement.equal if exported else None,
    }


def main() -> None:
    """Print a table for each scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each student")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder, one_thread():
                place = Path(folder)
                changes = {"rounds.count": options.rounds}
                for number, subject in enumerate(subjects(name, seed, changes, options.data_dir, place)):
                    about = {"scenario": name, "seed": seed, "task": subject.spec.name, "model": subject.model_name}
                    results += [{**about, **one} for one in figures(subject, place / str(number))]
        show(name, [one for one in results if one["scenario"] == name])
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")


def show(name: str, results: list[dict[str, Any]]) -> None:
    """Print a scenario's table."""
    table = Table(title=name, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("model", "form") else "right")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in results:
        groups[one["task"], one["model"], one["form"].rstrip("*")].append(one)
    for (_, model, form), rows in groups.items():
        sound = [one for one in rows if "bytes" in one]
        mark = "*" if any(one["form"].endswith("*") for one in rows) else ""
        lost = f" ({len(rows) - len(sound)} refused)" if len(sound) < len(rows) else ""
        if not sound:
            table.add_row(model, f"{form}{lost}")
            continue
        latency = [statistics.median(one["latency"][place] for one in sound) for place in range(2)]
        measured = [one["measure"] for one in sound if one["measure"] is not None]
        equal = [one["equal"] for one in sound if one["equal"] is not None]
        table.add_row(
            model,
            f"{form}{mark}{lost}",
            f"{sound[0]['bytes'] / 1000:.1f}",
            *(f"{1e6 * value:.0f}" for value in latency),
            f"{statistics.mean(measured):.4f}" if measured else "",
            f"{100 * statistics.mean(equal):.2f}" if equal else "",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
