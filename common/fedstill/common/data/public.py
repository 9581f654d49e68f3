"""The public samples of a task: rows of its own pool, or samples of another data set, of which nobody has labels."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedstill.common.data.sharing import Rows
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import TaskPlan
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples, ReadsUnlabelled, Task


@dataclass(frozen=True, slots=True, eq=False)
class Public:
    """Public samples as they were read.

    Attributes:
        inputs: (P, …).
        targets: (P, …) for measurement only, or empty where nobody knows them.
    """

    inputs: Tensor
    targets: Tensor


def public_samples(plan: TaskPlan, pool: Examples, rows: Rows, folder: Path | None, *, seed: int) -> Public:
    """The public samples of a task.

    Args:
        plan: of the task.
        pool: its own examples.
        rows: of the pool, for a task without a source of public samples.
        folder: the data folder.
        seed: draws the samples of another source.

    Raises:
        DataError: if the other source is missing, broken, too small, or of another shape.
        ConfigError: if this kind of task reads no source.
    """
    if not plan.proxy.source:
        own = pool.take(rows)
        return Public(own.inputs, own.targets)
    found = _read(plan.task, plan.proxy.source, folder, pool.inputs)
    if found.shape[1:] != pool.inputs.shape[1:] or found.dtype != pool.inputs.dtype:
        raise DataError(
            f"public samples of shape {tuple(found.shape[1:])} and type {found.dtype} in '{plan.proxy.source}'",
            f"expected {tuple(pool.inputs.shape[1:])} and {pool.inputs.dtype}, as the task's own",
        )
    if len(found) < plan.proxy.samples:
        raise DataError(
            f"{len(found)} public samples in '{plan.proxy.source}'",
            f"expected proxy.samples={plan.proxy.samples}",
            "lower it",
        )
    chosen = numpy_rng(seed, "foreign").choice(len(found), plan.proxy.samples, replace=False)
    return Public(found[np.sort(chosen)], pool.targets[:0])


def _read(task: Task, source: str, folder: Path | None, like: Tensor) -> Tensor:
    if isinstance(task, ReadsUnlabelled):
        return task.unlabelled(folder, source, like)
    options: Any = task
    if "source" not in {option.name for option in fields(options)}:
        raise ConfigError(f"proxy.source='{source}' with a task of kind '{task.name}'", "expected one with a source")
    other: Task = replace(options, source=source)
    return other.load(folder).pool.inputs
