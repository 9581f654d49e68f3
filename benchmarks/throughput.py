"""Images per second of whole FedMD rounds, against plain torch loops that do the same work in the same process.

    python benchmarks/throughput.py --data-dir DIR

A round of a client: distil on the proxy images, train on its own, predict the proxy images. The engine does on top what
a federation needs: messages, admission, the mean, the student's way to disk and back. The loops keep everything in
memory: "naive" as one would write it (NCHW, Adam's default implementation), "tuned" with channels-last layout, fused
Adam and prediction in batches of 128, as the engine has them.

After every round of the engine each loop does the same round, so that all meet the same machine; times are CPU seconds
of this process (one thread), which other processes disturb least. The table shows medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from fedstill.common.data.federation import federate
from fedstill.common.learning import one_thread
from fedstill.common.models import build_model, parameter_count
from fedstill.common.scenario import Scenario, parse
from fedstill.server.folder import new_folder
from fedstill.server.holdings import simulated
from fedstill.server.launch import build_teacher
from fedstill.server.rounds import Run, play
from fedstill.server.state import RunState
from fedstill.simulations.run import local_grid

BATCH = 64


def scenario_of(clients: int, images: int, model: str, rounds: int, precision: str) -> Scenario:
    """A FedMD run in which nothing but training, distillation and prediction takes time."""
    return parse(
        {
            "clients": {"count": clients},
            "rounds": {"count": rounds},
            "alone": False,
            "algorithm": {"name": "fedmd", "digest-epochs": 1},
            "training": {"epochs": 1, "batch-size": BATCH, "precision": precision},
            "tasks": {
                "fashion": {
                    "kind": "image",
                    "source": "fashion_mnist",
                    "models": [model],
                    "proxy": {"samples": images},
                    "private": clients * images,
                    "holdout": 0.0,
                    "test": 1,
                }
            },
        }
    )


class Loop:
    """One round of every client, as a plain torch loop."""

    def __init__(self, scenario: Scenario, data_dir: Path | None, *, tuned: bool) -> None:
        share = federate(scenario, data_dir).tasks["fashion"]
        layout = torch.channels_last if tuned else torch.contiguous_format
        self.tuned = tuned
        self.predict_batch = 128 if tuned else 512
        self.proxy = share.proxy.inputs.to(memory_format=layout)
        self.private = [
            (data.private.inputs.to(memory_format=layout), data.private.targets) for data in share.clients.values()
        ]
        name = scenario.tasks["fashion"].model(0)
        self.models = [
            build_model(name, share.spec, seed=k).to(memory_format=layout)  # type: ignore[call-overload]
            for k in range(len(self.private))
        ]
        self.consensus = torch.full((len(self.proxy), len(share.spec.classes)), 1 / len(share.spec.classes))

    def round(self) -> None:
        """Distil, train, predict, average."""
        answers = []
        for model, (inputs, targets) in zip(self.models, self.private, strict=True):
            model.train()
            self.fit(
                model,
                self.proxy,
                self.consensus,
                lambda z, q: functional.kl_div(z.log_softmax(-1), q, reduction="batchmean"),
            )
            self.fit(model, inputs, targets, functional.cross_entropy)
            model.eval()
            with torch.inference_mode():
                answers.append(
                    torch.cat([model(batch).softmax(-1) for batch in torch.split(self.proxy, self.predict_batch)])
                )
        self.consensus = torch.stack(answers).mean(0).clone()

    def fit(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """One epoch."""
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=self.tuned or None)
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model(inputs[rows]), targets[rows]))
            optimizer.step()


def measured(scenario: Scenario, data_dir: Path | None, loops: dict[str, Loop]) -> dict[str, float]:
    """CPU seconds of a round, median over the rounds that distil."""
    taken: dict[str, list[float]] = {name: [] for name in (*loops, "engine")}

    def committed(state: RunState) -> None:
        if state.record["kind"] != "round" or state.step < 2:  # round 1 has nothing to distil yet
            return
        taken["engine"].append(state.record["seconds"])
        for name, loop in loops.items():
            begun = time.process_time()
            loop.round()
            taken[name].append(time.process_time() - begun)

    with tempfile.TemporaryDirectory() as place:
        folder = new_folder(Path(place) / "run", scenario, data_dir=data_dir)
        run = Run(
            scenario=scenario,
            grid=local_grid(scenario, folder, data_dir=data_dir),
            tasks=simulated(scenario, data_dir),
            teacher=build_teacher(scenario.teacher),
            folder=folder,
            committed=committed,
            clock=time.process_time,
        )
        play(run)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with fashion_mnist")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--images", type=int, default=512, help="private images of a client, and proxy images")
    parser.add_argument("--model", default="cnn-small")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    scenario = scenario_of(options.clients, options.images, options.model, options.rounds, "fp32")
    with one_thread():
        loops = {
            name: Loop(scenario, options.data_dir, tuned=name == "tuned loop") for name in ("naive loop", "tuned loop")
        }
        fp32 = measured(scenario, options.data_dir, loops)
        bf16_run = replace(scenario, training=replace(scenario.training, precision="bf16"))
        bf16 = measured(bf16_run, options.data_dir, loops)
    weights = parameter_count(loops["naive loop"].models[0])
    images = 3 * options.clients * options.images
    table = Table(
        title=f"FedMD, {options.clients} clients × (distil + train + predict {options.images} images), {options.model} "
        f"({weights:,} weights), batch {BATCH}",
        title_justify="left",
    )
    for heading in ("", "images/s", "to the tuned loop", "to the naive loop"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, taken, beside in (
        ("naive loop", fp32["naive loop"], fp32),
        ("tuned loop", fp32["tuned loop"], fp32),
        ("fedstill, fp32 (default)", fp32["engine"], fp32),
        ("fedstill, bf16", bf16["engine"], bf16),
    ):
        ratios = [f"{beside[loop] / taken:.2f}" for loop in ("tuned loop", "naive loop")]
        table.add_row(name, f"{images / taken:,.0f}", *ratios)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
