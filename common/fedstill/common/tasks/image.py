"""Images of one class each: scikit-learn's digits, MNIST's format, or image files in a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.archives import ARCHIVES, FileStore, archive_in
from fedstill.common.data.classes import check_share, class_names, class_positions, merged, set_aside
from fedstill.common.data.content import find_task_folder, part_of, read_text, told_as_data_errors
from fedstill.common.data.idx import dimensions, read_idx
from fedstill.common.data.images import decode, open_images
from fedstill.common.data.preparation import Channels
from fedstill.common.data.readers import MODES, ImageFiles
from fedstill.common.data.scaling import standardise_images
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes, label_space
from fedstill.common.metrics import accuracy
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class ImageTask:
    """Tell what an image shows.

    Attributes:
        source: "digits" (scikit-learn's, 8 × 8, nothing to download); a folder of idx files as MNIST has them, where
            QMNIST's label files add the writers; or a folder or tar archive of `{train,test}/CLASS/FILE`
            or `CLASS/FILE`.
        classes: names of the classes in the order of their labels; () for the folders' names, or "0", "1", "2" …
        samples: at most so many images of each part are read, drawn once and for all; 0 for all.
        side: height and width to which image files are resized; 0 if all are of one size.
        test_share: share set aside to measure with, where the source has no test part.
        label_column: column of QMNIST's label files that is the label: 0 the digit, 1 the series of NIST's forms (0 to
            3 were written by employees, 4 by pupils).
        merge: classes that are told as one, as "even: 0 2 4 6 8"; each class once. () for the classes themselves.
        negative: image files are read as negatives: dark on light becomes light on dark.
    """

    name: ClassVar[str] = "image"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "image"

    source: str = "digits"
    classes: tuple[str, ...] = ()
    samples: int = 0
    side: int = 0
    test_share: float = 0.2
    label_column: int = 0
    merge: tuple[str, ...] = ()
    negative: bool = False

    def __post_init__(self) -> None:
        check.at_least(0, samples=self.samples, side=self.side, label_column=self.label_column)
        check_share(self.test_share)

    def load(self, folder: Path | None) -> TaskData:
        """Read the images as bytes (N, channels, height, width); kept for the next call in this process."""
        return _load(self, folder)

    def unlabelled(self, folder: Path | None, source: str, like: Tensor) -> Tensor:
        """Images of a source without labels, as bytes; image files at any depth get the size and colours of `like`."""
        return _unlabelled(self, folder, source, tuple(like.shape[1:]))

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Standardise each channel with the proxy set's mean and deviation."""
        return standardise_images(inputs, proxy)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Image files, unless the images are scikit-learn's digits, whose brightness goes to 16 only."""
        channels, height, width = proxy.shape[1:]
        reader = None
        if self.source != "digits" and channels in MODES:
            reader = ImageFiles(height, width, MODES[channels], resize=self.side > 0, negative=self.negative)
        return Usage(Channels.of(proxy.numpy()), reader)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy."""
        return {"accuracy": accuracy(logits, targets)}


@lru_cache(maxsize=2)
def _load(task: ImageTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        data = _read_source(task, folder)
        return merged(data, task.merge) if task.merge else data


def _read_source(task: ImageTask, folder: Path | None) -> TaskData:
    if task.source == "digits":
        return _digits(task)
    path = find_task_folder(folder, task.source)
    if path.is_dir() and any(dimensions(file) for file in path.iterdir() if file.is_file()):
        return _idx_folder(task, path)
    return _image_files(task, path)


def _digits(task: ImageTask) -> TaskData:
    # The file that scikit-learn's load_digits reads; to import scikit-learn for it takes a second in every process.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(name="scikit-learn")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = np.array([line.split(",") for line in read_text(path).split()], dtype=np.float32).astype(np.int64)
    images = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.uint8)
    chosen = _chosen(len(images), task.samples, "train")
    pool, test = set_aside(
        Examples(torch.from_numpy(images[chosen]), torch.from_numpy(rows[chosen, 64])), task.test_share
    )
    return TaskData(pool, label_space(task.classes or map(str, range(10))), test)


def _numbered(classes: Classes, *targets: Tensor) -> Classes:
    return label_space(classes or map(str, range(int(max(part.max() for part in targets)) + 1)))


def _chosen(count: int, samples: int, part: str) -> NDArray[np.int64]:
    if not samples or samples >= count:
        return np.arange(count)
    return np.sort(numpy_rng(0, "samples", part).choice(count, samples, replace=False))


# MNIST's format ------------------------------------------------------------------------------------------------------

_ROLES = {1: "labels", 2: "owners", 3: "images"}
"""What an idx file holds, by its number of dimensions."""

_WRITER = 2
"""Column of QMNIST's label files with the writer's number; column 0 is the label."""


def _idx_folder(task: ImageTask, folder: Path) -> TaskData:
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        role = _ROLES.get(dimensions(path))
        part = part_of(path.name)
        if role and (part, role) in files:
            raise DataError(f"{folder}", f"expected one file of {part} {role}", f"remove {path.name} or the other")
        if role:
            files[part, role] = path
    pool = _idx_part(task, folder, files, "train")
    if ("test", "images") not in files:
        everything = _numbered(task.classes, pool.targets)
        pool, test = set_aside(pool, task.test_share)
        return TaskData(pool, everything, test)
    test = _idx_part(task, folder, files, "test")
    return TaskData(pool, _numbered(task.classes, pool.targets, test.targets), test)


def _idx_part(task: ImageTask, folder: Path, files: dict[tuple[str, str], Path], part: str) -> Examples:
    for role in ("images", "labels"):
        if (part, role) not in files:
            raise DataError(f"{folder}", f"expected an idx file of {part} {role}", f"such as {part}-{role}.gz")
    images, labels = read_idx(files[part, "images"]), read_idx(files[part, "labels"])
    if images.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{folder}: {part} part", "expected images of bytes and labels of whole numbers")
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{folder}: {len(images)} {part} images with {len(labels)} labels", "expected one each")
    rows = _chosen(len(images), task.samples, part)
    owners: tuple[str, ...] = ()
    table = _details(files[part, "owners"], labels) if (part, "owners") in files else labels[:, None]
    if table.shape[1] <= task.label_column:
        raise DataError(
            f"label-column={task.label_column} of the {part} part in {folder}",
            f"expected 0 to {table.shape[1] - 1}",
            "put QMNIST's label files beside the images",
        )
    labels = table[:, task.label_column]
    # The pool is split by owner; a test part never is.
    if part == "train" and table.shape[1] > _WRITER:
        owners = tuple(f"writer-{number:04d}" for number in table[rows, _WRITER].tolist())
    return Examples(torch.from_numpy(images[rows][:, None]), torch.from_numpy(labels[rows].astype(np.int64)), owners)


def _details(path: Path, labels: NDArray[np.generic]) -> NDArray[np.generic]:
    """QMNIST's rows of the images beside it: label, series, writer and more."""
    table = read_idx(path)
    if table.shape[1] <= _WRITER or len(table) < len(labels) or (table[: len(labels), 0] != labels).any():
        raise DataError(f"{path}", "expected the labels of the images beside it in column 0, the writers in column 2")
    return table[: len(labels)]


# Image files ---------------------------------------------------------------------------------------------------------


def _image_files(task: ImageTask, path: Path) -> TaskData:
    with open_images(archive_in(path)) as store:
        parts: dict[str, list[str]] = {}
        for name in store.names:
            parts.setdefault(_part(path, name), []).append(name)
        pool_names = list(store.names) if len(parts) == 1 else parts.get("train", [])
        if not pool_names:
            raise DataError(f"{path} with parts {', '.join(parts)}", "expected a part 'train'", "rename a folder")
        test_names = [] if len(parts) == 1 else parts.get("test") or parts.get("validation") or []
        classes = label_space(task.classes or class_names(map(_class, [*pool_names, *test_names])))
        pool = _read(task, store, pool_names, part="train", classes=classes)
        if test_names:
            return TaskData(pool, classes, _read(task, store, test_names, part="test", classes=classes))
    pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, classes, test)


@lru_cache(maxsize=1)
def _unlabelled(task: ImageTask, folder: Path | None, source: str, shape: tuple[int, int, int]) -> Tensor:
    with told_as_data_errors(source):
        path = find_task_folder(folder, source)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        packed = [file for file in files if file.name.lower().endswith(ARCHIVES)]
        images = [file for file in files if file.is_file() and _ROLES.get(dimensions(file)) == "images"]
        if images:
            found = np.concatenate([np.asarray(read_idx(file))[:, None] for file in images])
            return torch.from_numpy(found[_chosen(len(found), task.samples, "unlabelled")])
        parts = [_any_images(task, part, shape) for part in packed or [path]]
        return torch.from_numpy(np.concatenate(parts))


def _any_images(task: ImageTask, path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, *size = shape
    with open_images(path) as store:
        rows = _chosen(len(store.names), task.samples, "unlabelled")
        found = decode(
            store, [store.names[row] for row in rows], size=(size[0], size[1]), mode="L" if channels == 1 else "RGB"
        )
    return 255 - found if task.negative else found


def _part(path: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    if len(parts) < 2:
        raise DataError(f"image {name} in {path}", "expected a folder for each class", "move it to its class's folder")
    return part_of(parts[-3]) if len(parts) > 2 else "train"


def _class(name: str) -> str:
    return PurePosixPath(name).parts[-2]


def _read(task: ImageTask, store: FileStore, names: Sequence[str], *, part: str, classes: Classes) -> Examples:
    targets = class_positions([_class(name) for name in names], classes, f"{part} part of '{task.source}'")
    rows = _chosen(len(names), task.samples, part)
    images = decode(store, [names[row] for row in rows], size=(task.side, task.side) if task.side else None)
    seen = 255 - images if task.negative else images
    return Examples(torch.from_numpy(seen), targets[torch.from_numpy(rows)])
