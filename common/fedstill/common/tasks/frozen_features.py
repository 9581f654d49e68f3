"""Features that a frozen network has made of pictures, texts or anything else, one class each: a NumPy .npz file.

A public backbone is the same everywhere, so that clients need not train it, nor agree on what they put on top of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.data.archives import FileStore, open_files
from fedstill.common.data.classes import check_share, set_aside
from fedstill.common.data.content import find_task_folder, told_as_data_errors
from fedstill.common.data.preparation import Columns
from fedstill.common.data.scaling import standardise_rows
from fedstill.common.errors import DataError, KnowledgeError
from fedstill.common.labels import Classes, label_space
from fedstill.common.metrics import accuracy, macro_f1
from fedstill.common.npy import read_array
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class FrozenFeaturesTask:
    """Tell a class from features that a frozen network has made.

    Attributes:
        source: an .npz file (or a folder of .npy files) with the arrays `features` (N, D), float16 or float32, and
            `labels` (N,), whole numbers from 0; the test part, if there is one, in `test_features` and `test_labels`.
        classes: names of the classes in the order of their labels; () for "0", "1", "2" …
        test_share: share set aside to measure with, where the source has no test part.
    """

    name: ClassVar[str] = "frozen-features"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "tabular"

    source: str
    classes: tuple[str, ...] = ()
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.test_share)

    def load(self, folder: Path | None) -> TaskData:
        """Read the features as they are in the file, (N, D); kept for the next call in this process."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Standardise each feature with the proxy set's mean and deviation."""
        return standardise_rows(inputs, proxy)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Arrays of features alone: the network that made them is not here."""
        return Usage(Columns.of(proxy.numpy()))

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy and macro-F1."""
        return {"accuracy": accuracy(logits, targets), "macro-f1": macro_f1(logits, targets)}


@lru_cache(maxsize=2)
def _load(task: FrozenFeaturesTask, folder: Path | None) -> TaskData:
    path = find_task_folder(folder, task.source)
    with told_as_data_errors(task.source), open_files(path, (".npy",), noun="arrays") as store:
        pool = _part(path, store, "")
        test = _part(path, store, "test_") if {"test_features.npy", "test_labels.npy"} & {*store.names} else None
    if test is None:
        pool, test = set_aside(pool, task.test_share)
    elif test.inputs.shape[1] != pool.inputs.shape[1]:
        raise DataError(
            f"{path}: test_features of {test.inputs.shape[1]} numbers",
            f"expected {pool.inputs.shape[1]} as in features",
            "make both with the same network",
        )
    labels = max(int(part.targets.max()) for part in (pool, test) if part is not None)
    return TaskData(pool, label_space(task.classes or map(str, range(labels + 1))), test)


def _part(path: Path, store: FileStore, prefix: str) -> Examples:
    features, labels = (_array(path, store, f"{prefix}{name}") for name in ("features", "labels"))
    if features.dtype not in (np.float16, np.float32) or features.ndim != 2 or not features.size:
        raise DataError(
            f"{path}: {prefix}features of shape {features.shape} and type {features.dtype}",
            "expected (N, D) of float16 or float32",
            "such as features.reshape(len(features), -1).astype('float16')",
        )
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {prefix}labels of shape {labels.shape} and type {labels.dtype}",
            f"expected one whole number for each of {len(features)} features",
        )
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(1)))
        raise DataError(f"{path}: {prefix}features of row {row}", "expected finite numbers", "float16 ends at 65504")
    # A label is a place in a list of names: it must not be able to ask for a list of any length.
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 1 << 20:
        raise DataError(
            f"{path}: {prefix}labels from {low} to {high}", "expected class positions", "number the classes from 0"
        )
    return Examples(torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64)))


def _array(path: Path, store: FileStore, name: str) -> NDArray[np.generic]:
    if f"{name}.npy" not in store.names:
        there = ", ".join(one.removesuffix(".npy") for one in store.names)
        raise DataError(f"{path} with {there}", f"expected an array '{name}'", "write it with numpy.savez")
    try:
        return read_array(name, store.read(f"{name}.npy"))
    except KnowledgeError as error:
        raise DataError(f"{path}", str(error), "write it with numpy.savez, in C order") from None
