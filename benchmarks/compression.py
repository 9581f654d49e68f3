"""A big teacher, small students, and the students in 8-bit integers: size, latency and accuracy.

    python benchmarks/compression.py big-teacher-small-students --seeds 1 2 3

Students are trained alone, distilled from the server's model ("teacher"), and distilled through a chain of teacher
assistants. Accuracy is the mean over clients on the common test samples. Latency is the median of single calls with one
sample on one thread; an integer model's activations are calibrated on the proxy set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

HEADINGS = ("model", "weights", "kB", "µs a sample", "accuracy %")


def played(scenario_name: str, seed: int, changes: dict[str, Any], data_dir: Path | None) -> Iterator[dict[str, Any]]:
    """The figures of one run's models, as they are and in 8-bit integers: of the students, then of the teacher."""
    from fedstill.client.store import Store
    from fedstill.common.compression import latency, quantised, weight_bytes
    from fedstill.common.data.federation import federate
    from fedstill.common.learning import predict
    from fedstill.common.models import build_model, parameter_count
    from fedstill.common.scenario import parse
    from fedstill.common.sources import override, read_table
    from fedstill.server.folder import new_folder
    from fedstill.simulations.run import simulate

    scenario = parse(override(read_table(scenario_name), {**changes, "seed": seed, "alone": False}))
    [(name, plan)] = scenario.tasks.items()
    federation = federate(scenario, data_dir)
    share = federation.tasks[name]
    assert share.test is not None
    test, samples = share.test, share.proxy.inputs

    def figures(who: str, models: Sequence[nn.Module]) -> Iterator[dict[str, Any]]:
        for precision in ("fp32", "int8"):
            ready = [quantised(model, samples) if precision == "int8" else model.eval() for model in models]
            outputs = [predict(model, test.inputs, training=scenario.training) for model in ready]
            rows = [plan.task.measure(logits, test.targets, share.spec.classes) for logits in outputs]
            yield {
                "model": f"{who}, {precision}",
                "seed": seed,
                "weights": parameter_count(models[0]),
                "bytes": weight_bytes(ready[0]),
                "latency": latency(ready[0], samples[:1]),
                "accuracy": statistics.mean(row["accuracy"] for row in rows),
            }

    with tempfile.TemporaryDirectory() as place:
        folder = new_folder(Path(place) / "run", scenario, data_dir=data_dir)
        state = simulate(scenario, folder, data_dir=data_dir)
        students = []
        for number, client in enumerate(federation.names):
            _, tensors = Store(folder.clients / client).load(state.versions[client])
            student = build_model(plan.model(number), share.spec, seed=0)
            prefix = f"{name}.model."
            student.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            students.append(student)
        yield from figures("student", students)
        teacher = build_model(plan.server_model, share.spec, seed=0)
        teacher.load_state_dict(dict(state.tasks[name].model))
        yield from figures("teacher", [teacher])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--assistants", nargs="+", default=["cnn-medium", "cnn-small"], help="from large to small")
    parser.add_argument("--epochs", type=int, default=3, help="of each model of the chain, in a round")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, dict[str, Any]] = {
        "alone": {"algorithm.name": "local"},
        "distilled": {},
        "distilled through assistants": {
            "teacher.kind": "assistants",
            "teacher.models": options.assistants,
            "teacher.epochs": options.epochs,
        },
    }
    results = []
    for way, changes in ways.items():
        for seed in options.seeds:
            for row in played(options.scenario, seed, changes, options.data_dir):
                who = row["model"].replace("student", f"student {way}")
                # The teacher is the same with and without assistants, and there is none of students alone.
                if who.startswith("student") or way == "distilled":
                    results.append({**row, "model": who})
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title=f"{options.scenario}, seeds {options.seeds}", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in sorted({row["model"] for row in results}, key=lambda name: (not name.startswith("teacher"), name)):
        rows = [row for row in results if row["model"] == model]
        accuracy = [100 * row["accuracy"] for row in rows]
        spread = f" ± {statistics.stdev(accuracy):.1f}" if len(rows) > 1 else ""
        table.add_row(
            model,
            f"{rows[0]['weights']:,}",
            f"{rows[0]['bytes'] / 1000:.1f}",
            f"{1e6 * statistics.median(row['latency'] for row in rows):.0f}",
            f"{statistics.mean(accuracy):.1f}{spread}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
