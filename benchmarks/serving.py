"""Latency and throughput of a served model, with and without batches: every client asks about one sample at a time.

    python benchmarks/serving.py --clients 1 8 32 --seconds 5

The service is a process of its own, with one thread that computes; all clients are threads of this process, each with
a channel of its own. On a machine of two cores both sides share them, as they do here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedstill.common.inference.endpoint import Endpoint
from fedstill.common.learning import Training
from fedstill.common.models import build_model, parameter_count
from fedstill.common.task import TaskSpec
from fedstill.server.serving.batching import Limits
from fedstill.server.serving.model import Served
from fedstill.server.serving.service import Service

TEN = tuple("0123456789")
MODELS = {
    "cnn-small": TaskSpec("digits", "categorical", "image", TEN, (1, 8, 8)),
    "resnet-20": TaskSpec("photos", "categorical", "image", TEN, (3, 32, 32)),
}
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {"batch": 1, "block": 1},
    "batches": {"batch": 64, "block": 1},
    "batches, block 16 (default)": {"batch": 64, "block": 16},
    "batches, block 16, delay 2 ms": {"batch": 64, "block": 16, "delay": 0.002},
}


def serve(architecture: str, limits: dict[str, Any]) -> None:
    """What the process of the service does, until its standard input ends."""
    torch.set_num_threads(1)
    spec = MODELS[architecture]
    model = build_model(architecture, spec, seed=1).eval()
    one = Served("model", "1", spec, architecture, model, Training(), "", "benchmark")
    with Service([one], limits=Limits(**limits, requests=128)) as service:
        print(service.port, flush=True)
        sys.stdin.read()
        counts = service.counts("model")
        print(counts.rows / max(counts.batches, 1), flush=True)


@contextmanager
def process(architecture: str, limits: dict[str, Any]) -> Iterator[tuple[int, list[float]]]:
    """The service's port; after the end, the mean rows of its batches."""
    command = [sys.executable, __file__, "--serve", architecture, json.dumps(limits)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        rows: list[float] = []
        yield int(child.stdout.readline()), rows
        child.stdin.close()
        rows.append(float(child.stdout.readline()))


def load(port: int, spec: TaskSpec, clients: int, seconds: float) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them together."""
    sample = np.random.default_rng(1).normal(size=(1, *spec.input_shape)).astype(np.float32)
    begin = threading.Barrier(clients + 1)
    taken: list[list[float]] = [[] for _ in range(clients)]

    def ask(own: list[float]) -> None:
        with Endpoint(f"127.0.0.1:{port}") as endpoint:
            for _ in range(5):
                endpoint.infer("model", {"inputs": ("FP32", sample)}, "logits")
            begin.wait()
            end = time.perf_counter() + seconds
            while (now := time.perf_counter()) < end:
                endpoint.infer("model", {"inputs": ("FP32", sample)}, "logits")
                own.append(time.perf_counter() - now)

    threads = [threading.Thread(target=ask, args=(own,)) for own in taken]
    for thread in threads:
        thread.start()
    begin.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return [one for own in taken for one in own], time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve[0], json.loads(chosen.serve[1]))
        return
    table = Table(title="Requests of one sample", title_justify="left")
    for heading in ("model", "way", "clients", "p50 ms", "p99 ms", "samples a second", "rows a batch"):
        table.add_column(heading, justify="left" if heading in ("model", "way") else "right")
    for architecture in chosen.models:
        weights = parameter_count(build_model(architecture, MODELS[architecture], seed=1))
        for clients in chosen.clients:
            for way, limits in WAYS.items():
                with process(architecture, limits) as (port, rows):
                    taken, seconds = load(port, MODELS[architecture], clients, chosen.seconds)
                p50, p99 = (1000 * float(value) for value in np.percentile(taken, [50, 99]))
                name = f"{architecture} ({weights:,})"
                figures = (f"{p50:.1f}", f"{p99:.1f}", f"{len(taken) / seconds:,.0f}", f"{rows[0]:.1f}")
                table.add_row(name, way, str(clients), *figures)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
