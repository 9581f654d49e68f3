"""A site that reads files of `split` holds what a simulated client computes, for every kind of task."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from fedstill.client.holdings import owned, simulated
from fedstill.client.site import read_site
from fedstill.common.models import model_names
from fedstill.common.registry import TASKS
from fedstill.common.scenario import PartitionPlan, ProxyPlan, TaskPlan, single_task
from fedstill.common.task import Task
from fedstill.server import holdings as server
from fedstill.simulations.split import PUBLIC, split

SAMPLES = {
    path.stem.replace("_", "-"): runpy.run_path(str(path))
    for path in sorted((Path(__file__).parents[1] / "samples").glob("*.py"))
}
KINDS: dict[str, type[Any]] = TASKS.all()


def _written(name: str, folder: Path) -> Task:
    folder.mkdir()
    if name in SAMPLES:
        SAMPLES[name]["write"](folder)
    made: Task = KINDS[name](**(SAMPLES[name]["OPTIONS"] if name in SAMPLES else {}))
    return made


@pytest.mark.parametrize("name", sorted(KINDS))
def test_files_hold_what_everybody_computes(name: str, tmp_path: Path) -> None:
    task = _written(name, tmp_path / "data")
    models = [one for one in model_names(task.modality, task.output) if not one.startswith("hf-")][:2]
    plan = TaskPlan(
        task=task,
        models=tuple(models),
        proxy=ProxyPlan(samples=8),
        partition=PartitionPlan(minimum=1),
        private=12,
        test=5,
    )
    scenario = single_task(plan, clients=2)

    dealt = split(scenario, tmp_path / "out", data_dir=tmp_path / "data")
    public = server.packed(scenario, tmp_path / "out" / PUBLIC)[name]

    computed = server.simulated(scenario, tmp_path / "data")[name]
    assert (public.spec, public.group, public.proxy.digest) == (computed.spec, computed.group, computed.proxy.digest)
    assert (public.features, public.model, public.pooled) == (computed.features, computed.model, None)
    assert (public.test is None) == (computed.test is None)
    if public.test is not None and computed.test is not None:
        assert torch.equal(public.test.inputs, computed.test.inputs)
        assert torch.equal(public.test.targets, computed.test.targets)
    for number, folder in enumerate(dealt.sites.values()):
        own, like = owned(read_site(folder / "client.toml")), simulated(scenario, number, tmp_path / "data")
        assert own.name == like.name
        assert own.tasks.keys() == like.tasks.keys() == {name}
        mine, theirs = own.tasks[name], like.tasks[name]
        assert (mine.spec, mine.whole, mine.model) == (theirs.spec, theirs.whole, theirs.model)
        for one, other in zip(
            (mine.data.private, mine.data.holdout), (theirs.data.private, theirs.data.holdout), strict=True
        ):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)
