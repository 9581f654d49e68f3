"""Public samples from another data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedstill.common.data.federation import TaskShare, federate
from fedstill.common.data.public import public_samples
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import ProxyPlan, Scenario, TaskPlan, single_task
from fedstill.common.task import Examples, Task
from fedstill.common.tasks.image import ImageTask
from fedstill.common.tasks.tabular import TabularTask

WriteIdx = Callable[[Path, NDArray[np.generic]], None]
WriteTar = Callable[[Path, Mapping[str, bytes]], None]
Png = Callable[[NDArray[np.uint8]], bytes]

COUNT = 12
DIGITS = TaskPlan(ImageTask(), ("mlp-small",), proxy=ProxyPlan(COUNT, source="signs"))


def share(plan: TaskPlan, folder: Path, *, seed: int = 1) -> TaskShare:
    return federate(single_task(plan, clients=2, seed=seed), folder).tasks[plan.task.name]


@pytest.fixture
def signs(tmp_path: Path, png: Png, write_tar: WriteTar) -> Path:
    """Forty coloured images of 16 × 16 at two depths in two archives, each of one value: 100 to 139."""
    (tmp_path / "signs").mkdir()
    for part in (0, 1):
        values = range(100 + 20 * part, 120 + 20 * part)
        files = {f"set/{v % 3}/{'deep/' * (v % 2)}{v}.png": png(np.full((16, 16, 3), v, np.uint8)) for v in values}
        write_tar(tmp_path / "signs" / f"{part}.tar.xz", files)
    (tmp_path / "signs" / "SOURCE.txt").write_text("where it is from")
    return tmp_path


def test_images_get_the_size_and_colours_of_the_tasks_own(signs: Path) -> None:
    like = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    found = ImageTask().unlabelled(signs, "signs", like)
    assert found.shape == (40, 1, 8, 8)
    assert found.dtype == torch.uint8
    assert sorted(found[:, 0, 3, 3].tolist()) == list(range(100, 140))
    negative = ImageTask(negative=True).unlabelled(signs, "signs", like)
    assert torch.equal(negative, 255 - found)
    assert ImageTask().unlabelled(signs, "signs", torch.zeros(1, 3, 4, 4)).shape == (40, 3, 4, 4)
    assert len(ImageTask(samples=5).unlabelled(signs, "signs", like)) == 10


def test_idx_images_need_no_labels(tmp_path: Path, write_idx: WriteIdx) -> None:
    (tmp_path / "letters").mkdir()
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    write_idx(tmp_path / "letters" / "train-images-idx3-ubyte.gz", images)
    found = ImageTask().unlabelled(tmp_path, "letters", torch.zeros(1, 1, 2, 2))
    np.testing.assert_array_equal(found.numpy(), images[:, None])


def test_nothing_of_the_tasks_own_data_becomes_public(signs: Path) -> None:
    split = share(DIGITS, signs)
    pool = ImageTask().load(None).pool
    assert len(split.proxy) == COUNT
    assert len(split.proxy_targets) == 0
    assert sum(len(data.private) + len(data.holdout) for data in split.clients.values()) == len(pool)
    # Mean and deviation are those of the public samples, here as for samples of the task's own.
    assert abs(float(split.proxy.inputs.mean())) < 1e-6
    assert abs(float(split.proxy.inputs.std(correction=0)) - 1) < 1e-5
    own = share(replace(DIGITS, proxy=ProxyPlan(COUNT)), signs)
    assert len(own.proxy_targets) == COUNT
    assert own.proxy.digest != split.proxy.digest


def test_the_seed_draws_them(signs: Path) -> None:
    one, same, other = (share(DIGITS, signs, seed=seed).proxy.digest for seed in (1, 1, 2))
    assert one == same != other


def test_sources_that_do_not_fit(signs: Path, write_idx: WriteIdx) -> None:
    with pytest.raises(DataError, match=r"40 public samples in 'signs': expected proxy.samples=41 \(lower it\)"):
        share(replace(DIGITS, proxy=ProxyPlan(41, source="signs")), signs)
    (signs / "small").mkdir()
    write_idx(signs / "small" / "train-images-idx3-ubyte", np.zeros((20, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"public samples of shape \(1, 4, 4\) .*expected \(1, 8, 8\) and torch.uint8"):
        share(replace(DIGITS, proxy=ProxyPlan(COUNT, source="small")), signs)
    with pytest.raises(DataError, match=r"data 'nowhere': expected it at"):
        share(replace(DIGITS, proxy=ProxyPlan(COUNT, source="nowhere")), signs)


def test_other_tasks_read_a_source_in_the_format_of_their_own(tmp_path: Path) -> None:
    for name, rows in (("own.csv", 30), ("other.csv", 9)):
        lines = [f"{n},{n % 4},{'ab'[n % 2]}" for n in range(rows)]
        (tmp_path / name).write_text("\n".join(["size,weight,kind", *lines]) + "\n")
    task = TabularTask(source="own.csv", test_share=0)
    split = share(TaskPlan(task, ("mlp-small",), proxy=ProxyPlan(6, source="other.csv")), tmp_path)
    assert split.proxy.inputs.shape == (6, 2)
    assert sum(len(data.private) + len(data.holdout) for data in split.clients.values()) == 30


def test_a_task_without_a_source(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Sourceless:
        name: ClassVar[str] = "tides"

    plan = TaskPlan(cast("Task", Sourceless()), ("bag-small",), proxy=ProxyPlan(6, source="elsewhere"))
    pool = Examples(torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"proxy.source='elsewhere' with a task of kind 'tides': expected one with a"):
        public_samples(plan, pool, np.arange(6), tmp_path, seed=1)


def test_tasks_share_them_if_they_read_the_same(signs: Path) -> None:
    proxy = ProxyPlan(COUNT, source="signs", shared="signs")
    plans = {
        "digits": replace(DIGITS, proxy=proxy),
        "parity": replace(DIGITS, task=ImageTask(merge=("even: 0 2 4 6 8", "odd: 1 3 5 7 9")), proxy=proxy),
    }
    scenario = Scenario(tasks=plans, algorithm=single_task(DIGITS, clients=2).algorithm)
    split = federate(scenario, signs).tasks
    assert split["digits"].proxy.digest == split["parity"].proxy.digest
    plans["parity"] = replace(plans["parity"], task=ImageTask(negative=True))
    with pytest.raises(DataError, match=r"tasks 'digits' and 'parity', which share public samples of 'signs'"):
        federate(replace(scenario, tasks=plans), signs)


def test_real_characters_for_digits(data_dir: Path) -> None:
    plan = TaskPlan(
        ImageTask(source="mnist", negative=True, samples=2000),
        ("mlp-small",),
        proxy=ProxyPlan(1000, source="omniglot_small"),
        private=500,
    )
    found = share(plan, data_dir).proxy.inputs
    assert found.shape == (1000, 1, 28, 28)
    # Ink is light on dark, as digits are: little of an image is far above its mean.
    assert float((found > 1).float().mean()) < 0.25
