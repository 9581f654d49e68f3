"""Every task with every algorithm that says that it can average the task's output kind: a round from end to end."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.errors import ConfigError
from fedstill.common.models import model_names
from fedstill.common.registry import ALGORITHMS, TASKS
from fedstill.common.scenario import Scenario, parse

Play = Callable[..., Any]

SAMPLES = {
    path.stem.replace("_", "-"): runpy.run_path(str(path))
    for path in sorted((Path(__file__).parents[1] / "samples").glob("*.py"))
}
PAIRS = [(task, method) for task in TASKS.names() for method in ALGORITHMS.names()]


def scenario(task: str, method: str, folder: Path) -> Scenario:
    kind = TASKS.get(task)
    options: dict[str, Any] = {"source": "digits", "samples": 60} if task == "image" else {}
    if task in SAMPLES:
        SAMPLES[task]["write"](folder)
        options = {key.replace("_", "-"): value for key, value in SAMPLES[task]["OPTIONS"].items()}
    model = next(name for name in model_names(kind.modality, kind.output) if not name.startswith("linear"))
    plan = {"kind": task, **options, "models": [model], "proxy": {"samples": 8}, "partition": {"minimum": 1}}
    return parse(
        {
            "clients": {"count": 2},
            "rounds": {"count": 1, "backoff": 0},
            "training": {"epochs": 1, "batch-size": 8},
            "algorithm": {"name": method},
            "tasks": {"it": plan},
        }
    )


@pytest.mark.parametrize(("task", "method"), PAIRS)
def test_a_round(task: str, method: str, tmp_path: Path, play_small: Play) -> None:
    kind, algorithm = TASKS.get(task), ALGORITHMS.get(method)
    if kind.output not in algorithm.outputs:
        with pytest.raises(ConfigError, match=f"algorithm '{method}' with task 'it' of output kind '{kind.output}'"):
            scenario(task, method, tmp_path)
        return

    played = play_small(scenario=scenario(task, method, tmp_path), data_dir=tmp_path)

    assert [record["rejected"] for record in played.records] == [[]] * 3
    last = played.records[-1]["tasks"]["it"]
    if algorithm.exchange == "data":
        assert last["server"]
    else:
        assert set(last["clients"]) == {"client-0", "client-1"}
        assert all("final" in key for measures in last["clients"].values() for key in measures)
