"""Every task kind that is discovered keeps the protocol, on data that ships with a package or is written here."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedstill.client.card import card_table, from_card_table
from fedstill.common.data.preparation import PREPARATIONS
from fedstill.common.data.readers import READERS
from fedstill.common.errors import DataError
from fedstill.common.models import model_names
from fedstill.common.outputs import OUTPUTS, output_kind
from fedstill.common.registry import TASKS, first_line
from fedstill.common.seeding import torch_rng
from fedstill.common.task import Task, TaskData
from fedstill.common.usage import TellsUsage

KINDS_OF_TASK: dict[str, type[Any]] = TASKS.all()

SAMPLES = {
    path.stem.replace("_", "-"): runpy.run_path(str(path))
    for path in sorted((Path(__file__).parents[1] / "samples").glob("*.py"))
}
"""A tiny sample of a task's data in its public format: options that read it, and a function that writes it."""

SHIPPED = ("image", "tabular")
"""Tasks that read what ships with a package."""


def options(name: str) -> dict[str, Any]:
    return dict(SAMPLES[name]["OPTIONS"]) if name in SAMPLES else {}


@pytest.fixture(params=sorted(KINDS_OF_TASK))
def task(request: pytest.FixtureRequest) -> Task:
    made: Task = KINDS_OF_TASK[request.param](**options(request.param))
    return made


@pytest.fixture
def data(task: Task, tmp_path: Path) -> TaskData:
    if task.name in SAMPLES:
        SAMPLES[task.name]["write"](tmp_path)
    return task.load(tmp_path)


def test_every_task_has_a_sample() -> None:
    assert SAMPLES.keys() | set(SHIPPED) == KINDS_OF_TASK.keys()


def test_what_it_says_of_itself(task: Task) -> None:
    assert KINDS_OF_TASK[task.name] is type(task)
    assert task.output in OUTPUTS.names()
    assert len(model_names(task.modality, task.output)) >= 2
    assert first_line(task)
    assert hash(task) == hash(type(task)(**options(task.name)))  # splits are kept by it


def test_data_is_whole(task: Task, data: TaskData) -> None:
    assert len(data.pool) > 20
    assert len(set(data.classes)) == len(data.classes) >= 1
    assert data.test is not None
    for part in (data.pool, data.test):
        assert len(part.inputs) == len(part.targets)
        if task.output == "categorical":
            assert part.targets.dtype == torch.int64
            assert 0 <= int(part.targets.min()) <= int(part.targets.max()) < len(data.classes)
        assert part.targets.shape[1 : 1 + len(data.positions)] == data.positions
    if task.modality == "text":
        assert int(data.pool.inputs.max()) < data.vocabulary
    assert bool(data.positions) == output_kind(task.output).has_positions


def test_the_same_folder_gives_the_same_data(task: Task, data: TaskData, tmp_path: Path) -> None:
    again = type(task)(**options(task.name)).load(tmp_path)

    assert torch.equal(data.pool.inputs.nan_to_num(), again.pool.inputs.nan_to_num())
    assert torch.equal(data.pool.targets, again.pool.targets)
    assert data.classes == again.classes


def test_inputs_are_made_ready_with_public_statistics_alone(task: Task, data: TaskData) -> None:
    raw, proxy = data.pool.inputs[:10], data.pool.inputs[10:30]

    ready = task.prepare(raw, proxy)

    assert len(ready) == 10
    assert ready.dtype == (torch.int64 if data.vocabulary else torch.float32)
    assert bool(torch.isfinite(ready.double()).all())
    # Each input by itself: its neighbours do not matter.
    assert torch.equal(task.prepare(raw[3:4], proxy), ready[3:4])
    assert torch.equal(data.pool.inputs[:10].nan_to_num(), raw.nan_to_num())


def perfect(task: Task, data: TaskData, targets: Tensor) -> Tensor:
    """Raw outputs that say the truth."""
    if task.output in ("categorical", "token-level", "sequence"):
        return one_hot(targets.clamp_min(0), len(data.classes)).float() * 5
    if task.output == "dense":
        peaks = targets.clone()
        peaks[..., :-4] = (targets[..., :-4] - 0.5) * 20
        return peaks
    return targets.float().reshape(len(targets), -1)


def test_a_perfect_prediction_measures_best(task: Task, data: TaskData) -> None:
    assert data.test is not None
    targets = (data.test if len(data.test) > 8 else data.pool).targets[:30]
    right = perfect(task, data, targets)
    rng = torch_rng(0, "wrong")

    classified = task.output in ("categorical", "token-level")
    wrong = right.roll(1, dims=-1) if classified else torch.randn(right.shape, generator=rng)
    best, worst = (task.measure(logits, targets, data.classes) for logits in (right, wrong))

    assert list(best) == list(worst)
    main = next(iter(best))
    assert best[main] == pytest.approx(1.0)
    assert worst[main] == 0.0 if classified else worst[main] < 0.95
    assert all(type(value) is float and np.isfinite(value) for value in (best | worst).values())


def test_a_source_that_is_not_there(task: Task, tmp_path: Path) -> None:
    missing = type(task)(**{**options(task.name), "source": "no-such-source"})

    with pytest.raises(DataError, match="no-such-source") as caught:
        missing.load(tmp_path)
    assert caught.value.exit_code == 3


def test_what_its_models_need_outside_of_a_run(task: Task, data: TaskData, tmp_path: Path) -> None:
    """Prepared by the constants of a card, inputs are what the task's own code makes of them, to the bit."""
    assert isinstance(task, TellsUsage)
    raw = data.pool.inputs
    usage = task.usage(tmp_path, raw[:20])
    told = json.loads(json.dumps(card_table(usage.preparation)))
    preparation = from_card_table(PREPARATIONS, told)
    assert preparation == usage.preparation
    ready = preparation.apply(raw.numpy())
    wanted = task.prepare(raw, raw[:20]).numpy()
    assert (ready.dtype, ready.shape) == (wanted.dtype, wanted.shape)
    assert ready.tobytes() == np.ascontiguousarray(wanted).tobytes()
    assert from_card_table(READERS, json.loads(json.dumps(card_table(usage.reader)))) == usage.reader
