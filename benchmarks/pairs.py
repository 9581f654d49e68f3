"""One teacher for two tasks against a teacher for each: what the students of either learn.

    python benchmarks/pairs.py --seeds 1 2 3 --data-dir DIR
    python benchmarks/pairs.py digit-parity --seeds 1 2 3

Two tasks share their proxy samples; one has many private examples, the other few. "apart" teaches each task with a
model of its own (`teacher.kind = "model"`), "together" with one encoder and two heads (`"multitask"`); "encoder" is the
same without the evidence of either task for the other, "weighted" with learnt weights of the tasks. Same data,
students, teacher architecture, and steps on each task's consensus.
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

TEACHERS: dict[str, dict[str, Any]] = {
    "apart": {"kind": "model", "epochs": 10},
    "together": {"kind": "multitask", "epochs": 10},
    "encoder": {"kind": "multitask", "epochs": 10, "evidence": 0.0},
    "weighted": {"kind": "multitask", "epochs": 10, "weights": "uncertainty"},
}

_MNIST = {"kind": "image", "source": "mnist", "samples": 3000, "models": ["mlp-small"], "teacher": "cnn-medium"}
_DIGITS = {"kind": "image", "source": "digits", "models": ["mlp-small", "cnn-small"], "teacher": "cnn-medium"}
_SPOKEN = {"source": "fsdd", "models": ["speechcnn-small"], "teacher": "speechcnn-medium"}
_COMMANDS = {"source": "snips", "models": ["textcnn-small"], "teacher": "textcnn-large", "test": 700}
_QUESTIONS = {
    "kind": "text",
    "source": "trec/TREC.*.txt",
    "encoding": "latin-1",
    "length": 32,
    "models": ["bag-small", "textcnn-small"],
    "teacher": "textcnn-large",
}
_CAPTIONS = {"kind": "translation", "source": "multi30k", "models": ["seq2seq-small"], "test": 200}
_PARITY = ["even: 0 2 4 6 8", "odd: 1 3 5 7 9"]
_WRITERS = ["employees: 0 1 2 3", "pupils: 4"]

PAIRS: dict[str, dict[str, Any]] = {
    "digit-parity": {
        "proxy": 400,
        "rounds": 4,
        "tasks": {"digit": {**_DIGITS, "private": 900}, "parity": {**_DIGITS, "merge": _PARITY, "private": 100}},
    },
    "digit-writers": {
        "proxy": 300,
        "rounds": 4,
        "tasks": {
            "digit": {**_MNIST, "private": 300},
            "writers": {**_MNIST, "label-column": 1, "merge": _WRITERS, "private": 1000},
        },
    },
    "word-speaker": {
        "proxy": 300,
        "rounds": 4,
        "tasks": {
            "word": {"kind": "speech", **_SPOKEN, "private": 300},
            "speaker": {"kind": "speaker", **_SPOKEN, "private": 80},
        },
    },
    "intent-slots": {
        "proxy": 300,
        "rounds": 4,
        "tasks": {
            "intent": {"kind": "intent", **_COMMANDS, "private": 80},
            "slots": {"kind": "slots", **_COMMANDS, "private": 600},
        },
    },
    "kind-detail": {
        "proxy": 400,
        "rounds": 4,
        "tasks": {
            "kind": {"label": "label", **_QUESTIONS, "private": 100},
            "detail": {"label": "fine-label", **_QUESTIONS, "private": 800},
        },
    },
    "german-french": {
        "proxy": 500,
        "rounds": 2,
        "tasks": {
            "german": {**_CAPTIONS, "languages": ["en", "de"], "private": 1000},
            "french": {**_CAPTIONS, "languages": ["en", "fr"], "private": 500},
        },
    },
}


def table_of(pair: str, seed: int, teacher: str) -> dict[str, Any]:
    """The scenario of one run: two clients with the first task, two with the second."""
    plan = PAIRS[pair]
    tasks = {
        name: {
            **task,
            "clients": [2 * number, 2 * number + 1],
            "proxy": {"samples": plan["proxy"], "shared": "both"},
            "partition": {"kind": "iid", "minimum": 5},
        }
        for number, (name, task) in enumerate(plan["tasks"].items())
    }
    return {
        "name": pair,
        "seed": seed,
        "clients": {"count": 4},
        "rounds": {"count": plan["rounds"]},
        "training": {"epochs": 8, "warmup": 16, "batch-size": 16, "learning-rate": 2e-3},
        "algorithm": {"name": "fedmd"},
        "teacher": TEACHERS[teacher],
        "tasks": tasks,
    }


def played(job: tuple[str, int, str, Path | None, tuple[str, ...]]) -> list[dict[str, Any]]:
    """One run: a row for each task."""
    from fedstill.common.scenario import parse
    from fedstill.common.sources import override, value_of
    from fedstill.server.folder import new_folder
    from fedstill.server.summary import summary
    from fedstill.simulations.run import simulate

    pair, seed, teacher, data_dir, words = job
    changes = {key: value_of(value) for key, _, value in (word.partition("=") for word in words)}
    scenario = parse(override(table_of(pair, seed, teacher), changes))
    with tempfile.TemporaryDirectory() as place:
        folder = new_folder(Path(place) / "run", scenario, data_dir=data_dir)
        simulate(scenario, folder, data_dir=data_dir)
        found = summary(folder)
    return [
        {
            "pair": pair,
            "seed": seed,
            "how": teacher,
            "task": task.name,
            "measure": task.measure,
            "alone": task.alone,
            "students": task.after,
            "teacher": task.teacher,
        }
        for task in found.tasks
    ]


def cell(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in hundredths."""
    there = [100 * value for value in values]
    return f"{statistics.mean(there):.1f}" + (f" ± {statistics.stdev(there):.1f}" if len(there) > 1 else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=[], metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of each run")
    options = parser.parse_args()
    pairs = options.pairs or list(PAIRS)
    jobs = [
        (pair, seed, teacher, options.data_dir, tuple(options.changes))
        for pair in pairs
        for seed in options.seeds
        for teacher in options.teachers
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        results = [row for rows in pool.map(played, jobs) for row in rows]
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title=f"students, in hundredths, seeds {options.seeds}", title_justify="left")
    for heading in ("pair", "task", "measure"):
        table.add_column(heading)
    for heading in ("alone", *options.teachers, *(f"{name} − apart" for name in options.teachers if name != "apart")):
        table.add_column(heading, justify="right")
    for pair, task, measure in dict.fromkeys((row["pair"], row["task"], row["measure"]) for row in results):
        own = [row for row in results if (row["pair"], row["task"]) == (pair, task)]
        by = {how: [row["students"] for row in own if row["how"] == how] for how in options.teachers}
        first = options.teachers[0]
        table.add_row(
            pair,
            task,
            measure,
            cell([row["alone"] for row in own if row["how"] == first]),
            *(cell(by[how]) for how in options.teachers),
            *(
                cell([ours - theirs for ours, theirs in zip(by[how], by["apart"], strict=True)])
                for how in options.teachers
                if how != "apart" and "apart" in by
            ),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
