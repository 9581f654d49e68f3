"""Codecs side by side: bits a sample, what is lost, and milliseconds.

    python benchmarks/codecs.py --seeds 1 2 3

Soft labels of small models on public digits: five clients with label skew (Dirichlet 0.3) learn from their own digits
and from the mean of everybody's soft labels at temperature 3, three rounds in all (`--rounds`). 500 digits are public,
each also shifted by up to a pixel: 5,000 samples. Bits are those of what the codec makes of the last round's answers; a
codec that remembers is given each client's own answer of the round before and the mean of all, as they come out of the
codec, and is also shown without. KL is KL(p ‖ p̂) in nats with probabilities of at least 10⁻⁴; "agree" is the share of
samples whose likeliest class stays. Milliseconds are those of encoding and decoding one answer: the median over the
clients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedstill.common.codec import with_context
from fedstill.common.context import known, remember_through
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model
from fedstill.common.registry import CODECS
from fedstill.common.seeding import derive, numpy_rng
from fedstill.common.task import TaskSpec

CLIENTS, PUBLIC, SHIFTS, TEMPERATURE = 5, 500, 10, 3.0
LEAST = 1e-4
CLASSES = tuple(map(str, range(10)))
HEADINGS = ("codec", "bits a sample", "KL", "agree %", "ms")

Labels = NDArray[np.float32]


def answers(seed: int, count: int) -> list[tuple[list[Labels], Labels]]:
    """Of each round the clients' soft labels on the public samples and their mean."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = numpy_rng(seed, "order").permutation(len(data.target))
    images = torch.from_numpy(data.images[order] / 16).float()
    targets = torch.from_numpy(data.target[order]).long()
    public = _shifted(images[:PUBLIC], seed)
    own = _skewed(targets[PUBLIC:].numpy(), seed)
    spec = TaskSpec("digits", "categorical", "tabular", CLASSES, (64,))
    models = [build_model("mlp-small", spec, seed=derive(seed, "model", number)) for number in range(CLIENTS)]
    training = Training(epochs=10, batch_size=32, learning_rate=0.05)
    rounds: list[tuple[list[Labels], Labels]] = []
    for step in range(count):
        told = []
        for number, model in enumerate(models):
            if rounds:
                _distil(model, public, torch.from_numpy(rounds[-1][1]), training, derive(seed, "distil", step, number))
            inputs, classes = images[PUBLIC:].flatten(1)[own[number]], targets[PUBLIC:][own[number]]
            fit(
                model,
                inputs,
                [classes],
                torch.nn.functional.cross_entropy,
                training=training,
                epochs=training.epochs,
                seed=derive(seed, "fit", step, number),
            )
            told.append(torch.softmax(predict(model, public, training=training) / TEMPERATURE, -1).numpy())
        mean: Labels = np.stack(told).mean(0, dtype=np.float64).astype(np.float32)
        rounds.append((told, mean))
    return rounds


def _distil(model: torch.nn.Module, inputs: Tensor, soft: Tensor, training: Training, seed: int) -> None:
    def loss(logits: Tensor, teacher: Tensor) -> Tensor:
        student = torch.log_softmax(logits / TEMPERATURE, -1)
        return TEMPERATURE**2 * torch.nn.functional.kl_div(student, teacher, reduction="batchmean")

    fit(model, inputs, [soft], loss, training=replace(training, learning_rate=0.01), epochs=2, seed=seed)


def _shifted(images: Tensor, seed: int) -> Tensor:
    """(N · SHIFTS, 64): each image as it is and shifted by up to a pixel in both directions."""
    rng = numpy_rng(seed, "shifts")
    shifts = [(0, 0), *(tuple(int(step) for step in rng.integers(-1, 2, 2)) for _ in range(SHIFTS - 1))]
    return torch.cat([torch.roll(images, shift, (1, 2)) for shift in shifts]).flatten(1)


def _skewed(targets: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    rng = numpy_rng(seed, "partition")
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(CLIENTS)]
    for label in range(10):
        places = np.flatnonzero(targets == label)
        cuts = (np.cumsum(rng.dirichlet(np.full(CLIENTS, 0.3)))[:-1] * len(places)).astype(int)
        for part, piece in zip(parts, np.split(places, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def measured(name: str, rounds: list[tuple[list[Labels], Labels]], *, context: bool) -> dict[str, float]:
    """Means over the clients' answers of the last round."""
    codec = CODECS.get(name)()
    samples = np.arange(len(rounds[-1][1]))
    rows = []
    for number, soft in enumerate(rounds[-1][0]):
        sides: dict[str, Any] = {}
        if context:
            before = [
                SoftLabels("categorical", CLASSES, samples, one) for one in (rounds[-2][0][number], rounds[-2][1])
            ]
            sides = {"values": known([remember_through(one, codec) for one in before], samples, CLASSES)}
        begun = time.perf_counter()
        packed = codec.encode({"values": soft}, sides) if context else codec.encode({"values": soft})
        back = (codec.decode(packed, sides) if context else codec.decode(packed))["values"].astype(np.float64)
        took = time.perf_counter() - begun
        exact = soft.astype(np.float64)
        divergence = exact * (np.log(np.maximum(exact, LEAST)) - np.log(np.maximum(back, LEAST)))
        rows.append(
            {
                "bits": sum(array.nbytes for array in packed.values()) * 8 / len(soft),
                "kl": float(divergence.sum(1).mean()),
                "agree": float((soft.argmax(1) == back.argmax(1)).mean()),
                "ms": took * 1000,
            }
        )
    figures = {key: statistics.mean(row[key] for row in rows) for key in ("bits", "kl", "agree")}
    return figures | {"ms": statistics.median(row["ms"] for row in rows)}


def ways() -> Iterator[tuple[str, bool]]:
    """Every codec; one that remembers without and with what it remembers."""
    for name in ("raw", *(name for name in CODECS.names() if name != "raw")):
        yield name, False
        if with_context(CODECS.get(name)()) is not None:
            yield name, True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3, help="at least 2; the last one is coded")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in options.seeds:
        rounds = answers(seed, options.rounds)
        rows += [
            {
                "codec": name + (", remembering" if context else ""),
                "seed": seed,
                **measured(name, rounds, context=context),
            }
            for name, context in ways()
        ]
    table = Table(*HEADINGS, title=f"{PUBLIC * SHIFTS:,} samples of 10 classes, round {options.rounds}")
    for name in dict.fromkeys(row["codec"] for row in rows):
        own = {
            key: statistics.mean(row[key] for row in rows if row["codec"] == name)
            for key in ("bits", "kl", "agree", "ms")
        }
        table.add_row(name, f"{own['bits']:.2f}", f"{own['kl']:.2g}", f"{own['agree'] * 100:.1f}", f"{own['ms']:.1f}")
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
