"""Every task kind that is discovered keeps the protocol, on data that ships with a package or is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.errors import DataError
from fedstill.common.models import model_names
from fedstill.common.outputs import OUTPUTS
from fedstill.common.registry import TASKS, first_line
from fedstill.common.task import Task, TaskData

KINDS_OF_TASK: dict[str, type[Any]] = TASKS.all()

OPTIONS: dict[str, dict[str, Any]] = {"text": {"source": "words.csv", "vocabulary": 50, "length": 6}}
"""Options without which a task has no data to read; by default it reads what ships with a package."""

WORDS = "text,label\n" + "\n".join(
    f"the {'sun' if row % 2 else 'rain'} of day {row},{['good', 'bad'][row % 2]}" for row in range(40)
)


@pytest.fixture(params=sorted(KINDS_OF_TASK))
def task(request: pytest.FixtureRequest) -> Task:
    made: Task = KINDS_OF_TASK[request.param](**OPTIONS.get(request.param, {}))
    return made


@pytest.fixture
def data(task: Task, tmp_path: Path) -> TaskData:
    (tmp_path / "words.csv").write_text(WORDS)
    return task.load(tmp_path)


def test_what_it_says_of_itself(task: Task) -> None:
    assert KINDS_OF_TASK[task.name] is type(task)
    assert task.output in OUTPUTS.names()
    assert model_names(task.modality)
    assert first_line(task)
    assert hash(task) == hash(type(task)(**OPTIONS.get(task.name, {})))  # splits are kept by it


def test_data_is_whole(task: Task, data: TaskData) -> None:
    assert len(data.pool) > 20
    assert len(set(data.classes)) == len(data.classes) >= 1
    assert data.test is not None
    for part in (data.pool, data.test):
        assert len(part.inputs) == len(part.targets)
        if task.output == "categorical":
            assert part.targets.dtype == torch.int64
            assert 0 <= int(part.targets.min()) <= int(part.targets.max()) < len(data.classes)
    if task.modality == "text":
        assert int(data.pool.inputs.max()) < data.vocabulary


def test_the_same_folder_gives_the_same_data(task: Task, data: TaskData, tmp_path: Path) -> None:
    again = type(task)(**OPTIONS.get(task.name, {})).load(tmp_path)

    assert torch.equal(data.pool.inputs.nan_to_num(), again.pool.inputs.nan_to_num())
    assert torch.equal(data.pool.targets, again.pool.targets)
    assert data.classes == again.classes


def test_inputs_are_made_ready_with_public_statistics_alone(task: Task, data: TaskData) -> None:
    raw, proxy = data.pool.inputs[:10], data.pool.inputs[10:30]

    ready = task.prepare(raw, proxy)

    assert len(ready) == 10
    assert ready.dtype == (torch.int64 if task.modality == "text" else torch.float32)
    assert bool(torch.isfinite(ready.double()).all())
    # Each input by itself: its neighbours do not matter.
    assert torch.equal(task.prepare(raw[3:4], proxy), ready[3:4])
    assert torch.equal(data.pool.inputs[:10].nan_to_num(), raw.nan_to_num())


def test_a_perfect_prediction_measures_best(task: Task, data: TaskData) -> None:
    targets, count = data.pool.targets[:30], len(data.classes)
    assert task.output == "categorical"
    right = torch.nn.functional.one_hot(targets, count).float() * 5
    wrong = right.roll(1, dims=-1)

    best, worst = (task.measure(logits, targets, data.classes) for logits in (right, wrong))

    assert list(best) == list(worst)
    main = next(iter(best))
    assert (best[main], worst[main]) == (1.0, 0.0)
    assert all(type(value) is float and np.isfinite(value) for value in (best | worst).values())


def test_a_source_that_is_not_there(task: Task, tmp_path: Path) -> None:
    missing = type(task)(**{**OPTIONS.get(task.name, {}), "source": "no-such-source"})

    with pytest.raises(DataError, match="no-such-source") as caught:
        missing.load(tmp_path)
    assert caught.value.exit_code == 3
