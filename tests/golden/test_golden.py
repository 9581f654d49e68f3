"""What no refactoring may change by accident: pinned where it is exact on every machine, run against run elsewhere.

Floating-point sums differ between processors, so that no accuracy is pinned; seeds, samples, splits and file names are,
and so are the bytes on the wire, up to what another zlib may make of them.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.data.federation import federate
from fedstill.common.scenario import Scenario
from fedstill.server.holdings import simulated

Small = Callable[..., Scenario]
Play = Callable[..., Any]


def lines(folder: Path) -> list[str]:
    """rounds.jsonl without what the clock says."""
    return [re.sub(r'"seconds":[0-9.]+', "", line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


RUNS: dict[str, Mapping[str, Any]] = {
    "fedmd": {},
    "fedmd, half precision, a model teaches": {"codec": "fp16", "teacher.kind": "model"},
    "dsfl, few proxy samples a round": {
        "algorithm.name": "dsfl",
        "tasks.wine.proxy": {"samples": 40, "per-round": 20},
    },
    "feddf": {"algorithm.name": "feddf", "tasks.wine.models": ["mlp-small"]},
    "half a cohort": {"clients.cohort": 0.5, "clients.count": 5, "tasks.wine.partition": {"minimum": 5}},
    "own label spaces": {
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    },
}


@pytest.mark.parametrize("what", RUNS)
def test_two_runs_give_the_same_files(play_small: Play, what: str) -> None:
    first = play_small(RUNS[what], name="a").folder.path
    # Whoever else draws from a global generator changes nothing.
    torch.rand(3)
    np.random.rand(3)

    second = play_small(RUNS[what], name="b").folder.path

    assert lines(first) == lines(second)
    for path in sorted((first / "checkpoints").glob("*.safetensors")):
        assert path.read_bytes() == (second / "checkpoints" / path.name).read_bytes()
    students = [
        sorted(path.relative_to(folder) for path in (folder / "clients").rglob("*")) for folder in (first, second)
    ]
    assert students[0] == students[1]  # their names hold the checksums of their contents


def test_other_seeds_give_other_numbers(play_small: Play) -> None:
    assert lines(play_small(name="a").folder.path) != lines(play_small({"seed": 2}, name="b").folder.path)


def test_bytes_on_the_wire_are_pinned(play_small: Play) -> None:
    """A change here is a change of the protocol, or of what a message costs.

    Means over clients, 5 % up or down: messages are deflated, and with them measures whose last bits differ.
    """
    played = play_small()

    traffic = [
        {way: statistics.fmean(sizes[way] for sizes in record["bytes"]["clients"].values()) for way in ("up", "down")}
        for record in played.records
    ]
    up_and_down = [(411, 366), (820, 227), (896, 788), (246, 804)]
    assert [list(record["bytes"]["clients"]) for record in played.records] == [played.records[0]["cohort"]] * 4
    assert traffic == [pytest.approx({"up": up, "down": down}, rel=0.05) for up, down in up_and_down]


def test_splits_are_pinned(small: Small) -> None:
    """Which of the bundled digits are public, and whose the others are."""
    task = {
        "kind": "image",
        "models": ["mlp-small"],
        "proxy": {"samples": 400},
        "partition": {"kind": "dirichlet", "alpha": 0.3},
    }
    share = federate(small({"tasks": {"digits": task}, "clients.count": 8}), None).tasks["digits"]

    assert {name: (len(data.private), len(data.holdout)) for name, data in share.clients.items()} == {
        "client-0": (74, 18),
        "client-1": (99, 24),
        "client-2": (83, 20),
        "client-3": (143, 35),
        "client-4": (187, 46),
        "client-5": (84, 21),
        "client-6": (148, 37),
        "client-7": (16, 3),
    }
    assert share.proxy_targets[:20].tolist() == [0, 2, 4, 6, 2, 4, 6, 1, 5, 5, 5, 9, 8, 0, 1, 0, 3, 3, 7, 9]
    first = share.clients["client-0"].private.targets
    assert torch.bincount(first, minlength=10).tolist() == [0, 0, 0, 0, 18, 1, 13, 1, 14, 27]


def test_samples_of_a_round_are_pinned(small: Small) -> None:
    proxy = simulated(small(), None)["wine"].proxy

    assert proxy.draw(6, seed=1).tolist() == [3, 5, 9, 23, 28, 33]
    assert proxy.draw(0, seed=1).tolist() == list(range(40))


def test_files_of_a_run_are_pinned(play_small: Play) -> None:
    played = play_small()

    files = {str(path.relative_to(played.folder.path)) for path in played.folder.path.rglob("*") if path.is_file()}
    named = {re.sub(r"-[0-9a-f]{16}", "-CHECKSUM", name) for name in files}
    assert named == {
        "config.toml",
        "rounds.jsonl",
        *(f"checkpoints/step-{step:06d}.{kind}" for step in (1, 2, 3) for kind in ("json", "safetensors")),
        *(f"clients/client-{k}/student-{step:06d}-CHECKSUM.safetensors" for k in range(4) for step in (1, 2, 3)),
    }
    record = json.loads((played.folder.path / "rounds.jsonl").read_text().splitlines()[1])
    assert list(record) == [
        "kind",
        "step",
        "attempt",
        "cohort",
        "accepted",
        "rejected",
        "abandoned",
        "restarted",
        "bytes",
        "seconds",
        "tasks",
    ]
    assert list(played.folder.config()) == ["fedstill", "data-dir", "scenario", "roster", "refused", "labels", "specs"]
