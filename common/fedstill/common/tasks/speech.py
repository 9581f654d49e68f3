"""Spoken words of one class each: which one is said in a recording."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.classes import check_share, class_names, class_positions, set_aside
from fedstill.common.data.content import told_as_data_errors
from fedstill.common.data.preparation import Bands
from fedstill.common.data.readers import WaveFiles
from fedstill.common.data.scaling import standardise_spectrograms
from fedstill.common.data.spoken import FSDD, Spoken, check_pattern, read_spoken
from fedstill.common.errors import DataError, nearest
from fedstill.common.labels import Classes, label_space
from fedstill.common.metrics import accuracy, macro_f1
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class SpeechTask:
    """Tell which word is spoken.

    Recordings belong to their speakers. The test part holds everybody's first takes and all of the unseen speaker's.
    The inputs are the same as those of the task `speaker` with the same options.

    Attributes:
        source: a folder or archive (tar or zip) of WAV files, or a folder with one such archive.
        pattern: regular expression, found in a file's path without its suffix, with the groups `word`, `speaker` and
            `take` (a number).
        classes: the words in the order of their labels; () for those of the names.
        unseen: a speaker of whom no client and no proxy sample has anything; "" for none.
        test_takes: takes with a number below it are the test part; 0 for none.
        test_share: share set aside to measure with, where nothing else is.
        mels: bands of the spectrogram.
        window: of the Fourier transform, in milliseconds.
        hop: from frame to frame, in milliseconds.
        seconds: of a recording that are heard; the rest is cut.
    """

    name: ClassVar[str] = "speech"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "speech"

    source: str
    pattern: str = FSDD
    classes: tuple[str, ...] = ()
    unseen: str = ""
    test_takes: int = 5
    test_share: float = 0.2
    mels: int = 32
    window: float = 32.0
    hop: float = 16.0
    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_pattern(self.pattern)
        check_share(self.test_share)
        check.at_least(0, test_takes=self.test_takes)
        check.at_least(1, mels=self.mels)
        check.positive(window=self.window, hop=self.hop, seconds=self.seconds)

    def load(self, folder: Path | None) -> TaskData:
        """Read the recordings as log-mel spectrograms: bytes (N, 1, mels, frames); kept for the next call."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Standardise each band with the proxy set's mean and deviation; padding becomes 0."""
        return standardise_spectrograms(inputs, proxy)

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """WAV files."""
        rate = recordings(self, folder).rate
        reader = WaveFiles(rate, mels=self.mels, window=self.window, hop=self.hop, seconds=self.seconds)
        return Usage(Bands.of(proxy.numpy()), reader)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy and macro-F1."""
        return {"accuracy": accuracy(logits, targets), "macro-f1": macro_f1(logits, targets)}


@lru_cache(maxsize=2)
def _load(task: SpeechTask, folder: Path | None) -> TaskData:
    spoken = recordings(task, folder)
    classes = label_space(task.classes or class_names(spoken.words))
    everything = Examples(spoken.spectra, class_positions(spoken.words, classes, task.source), spoken.speakers)
    return divided(everything, spoken, task, unseen_is_tested=True, classes=classes)


def recordings(task: SpeechTask, folder: Path | None) -> Spoken:
    """What a task's source holds.

    Raises:
        DataError: if it is missing or damaged, or has no such speaker as the unseen one.
    """
    with told_as_data_errors(task.source):
        spoken = read_spoken(
            folder,
            task.source,
            pattern=task.pattern,
            mels=task.mels,
            window=task.window,
            hop=task.hop,
            seconds=task.seconds,
        )
    if task.unseen and task.unseen not in spoken.speakers:
        raise DataError(
            f"unseen = '{task.unseen}'",
            f"expected a speaker of '{task.source}'",
            nearest(task.unseen, set(spoken.speakers)),
        )
    return spoken


def divided(
    everything: Examples, spoken: Spoken, task: SpeechTask, *, unseen_is_tested: bool, classes: Classes
) -> TaskData:
    """Examples as a pool and a test part; the pools of two tasks with the same options have the same recordings.

    Args:
        everything: an example for each recording.
        spoken: the recordings.
        task: says which ones are the test part.
        unseen_is_tested: whether the unseen speaker's recordings belong to it, or to neither.
        classes: the label space.
    """
    unseen = torch.tensor([bool(task.unseen) and speaker == task.unseen for speaker in spoken.speakers])
    early = torch.tensor(spoken.takes) < task.test_takes
    pool = everything.take(torch.nonzero(~unseen & ~early)[:, 0])
    if not len(pool):
        raise DataError(
            f"test-takes={task.test_takes} of '{task.source}'", "expected less, all are in the test part", "lower it"
        )
    tested = torch.nonzero((unseen | early) if unseen_is_tested else (early & ~unseen))[:, 0]
    if not len(tested):
        pool, test = set_aside(pool, task.test_share)
        return TaskData(pool, classes, test)
    # The pool is split by owner; a test part never is.
    part = everything.take(tested)
    return TaskData(pool, classes, Examples(part.inputs, part.targets))
