"""Objects in photographs: what they are and where, from Pascal VOC's files."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.archives import FileStore, archive_in, open_files
from fedstill.common.data.boxes import STRIDE, centre_maps, found_boxes, true_boxes
from fedstill.common.data.classes import check_share, class_names, class_positions, set_aside
from fedstill.common.data.content import find_task_folder, told_as_data_errors
from fedstill.common.data.images import decode
from fedstill.common.data.preparation import Channels
from fedstill.common.data.readers import MODES, ImageFiles
from fedstill.common.data.scaling import standardise_images
from fedstill.common.data.voc import SUFFIXES, Photograph, read_photographs
from fedstill.common.detection_metrics import average_precision
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes, label_space
from fedstill.common.outputs.dense import GEOMETRY
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class DetectionTask:
    """Find the objects in a photograph, each with its class and a box around it.

    Splits with label skew go by the rarest class on a photograph.

    Attributes:
        source: a folder or an archive in Pascal VOC's layout: Annotations/NAME.xml, JPEGImages/NAME.jpg, and lists of
            names in ImageSets/Main/PART.txt, if there are parts.
        parts: the parts to learn from.
        test_parts: the parts to measure with.
        classes: names of the classes in the order of their heat maps; () for those that occur.
        width: to which photographs are resized, a multiple of 4.
        height: likewise.
        test_share: share set aside to measure with, where there are no parts.
    """

    name: ClassVar[str] = "detection"
    output: ClassVar[str] = "dense"
    modality: ClassVar[str] = "image"

    source: str
    parts: tuple[str, ...] = ("train", "val")
    test_parts: tuple[str, ...] = ("test",)
    classes: tuple[str, ...] = ()
    width: int = 160
    height: int = 120
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(STRIDE, width=self.width, height=self.height)
        check_share(self.test_share)
        for name in ("width", "height"):
            if getattr(self, name) % STRIDE:
                raise ConfigError(f"{name}={getattr(self, name)}", f"expected a multiple of {STRIDE}, pixels of a cell")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps, in cells."""
        return self.height // STRIDE, self.width // STRIDE

    def load(self, folder: Path | None) -> TaskData:
        """Read the photographs as bytes (N, 3, height, width); kept for the next call in this process."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Standardise each channel with the proxy set's mean and deviation."""
        return standardise_images(inputs, proxy)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Image files of any size."""
        channels, height, width = proxy.shape[1:]
        return Usage(Channels.of(proxy.numpy()), ImageFiles(height, width, MODES[channels]))

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Mean average precision at an overlap of one half, and each class's own."""
        kinds = classes[: -len(GEOMETRY)]
        each = average_precision(found_boxes(logits), true_boxes(targets), classes=len(kinds))
        known = {kind: value for kind, value in zip(kinds, each, strict=True) if not math.isnan(value)}
        mean = sum(known.values()) / len(known) if known else 0.0
        return {"map50": mean, **{f"ap50-{kind}": value for kind, value in known.items()}}


@lru_cache(maxsize=2)
def _load(task: DetectionTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        place = archive_in(find_task_folder(folder, task.source))
        with open_files(place, SUFFIXES, noun="photographs and annotations") as store:
            parts = read_photographs(store, f"data '{task.source}'")
            learnt = tuple(parts) if len(parts) == 1 else task.parts
            photographs = _of(parts, learnt, task)
            tested = _of(parts, [part for part in task.test_parts if part not in learnt and part in parts], task)
            classes = label_space(
                task.classes or class_names(label for one in (*photographs, *tested) for label in one.labels)
            )
            pool = _examples(task, store, photographs, classes)
            test = _examples(task, store, tested, classes) if tested else None
    if test is None:
        pool, test = set_aside(pool, task.test_share)
    return TaskData(pool, (*classes, *GEOMETRY), test, positions=task.grid)


def _of(
    parts: dict[str, list[Photograph]], chosen: tuple[str, ...] | list[str], task: DetectionTask
) -> list[Photograph]:
    for part in chosen:
        if part not in parts:
            raise DataError(
                f"part '{part}' of '{task.source}'",
                f"expected one of {', '.join(sorted(parts))}",
                "set the task's 'parts'",
            )
    return [one for part in chosen for one in parts[part]]


def _examples(task: DetectionTask, store: FileStore, photographs: list[Photograph], classes: Classes) -> Examples:
    labels = [class_positions(one.labels, classes, one.image).numpy() for one in photographs]
    maps = [
        centre_maps(one.corners, label, classes=len(classes), grid=task.grid)
        for one, label in zip(photographs, labels, strict=True)
    ]
    often = Counter(np.concatenate(labels).tolist()) if labels else Counter()
    rarest = [min(label.tolist(), key=lambda kind: (often[kind], kind), default=0) for label in labels]
    images = decode(store, [one.image for one in photographs], size=(task.height, task.width))
    return Examples(
        torch.from_numpy(images), torch.from_numpy(np.stack(maps)), strata=torch.tensor(rarest, dtype=torch.int64)
    )
