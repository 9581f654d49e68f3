"""Recordings of one speaker each: who is speaking, whatever is said."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from fedstill.common import check
from fedstill.common.data.classes import class_names, class_positions
from fedstill.common.labels import label_space
from fedstill.common.task import Examples, TaskData
from fedstill.common.tasks.speech import SpeechTask, divided, recordings


@dataclass(frozen=True, slots=True)
class SpeakerTask(SpeechTask):
    """Tell who is speaking.

    The recordings, their division and the inputs are those of the task `speech` with the same options. Recordings
    belong to blocks of takes that follow each other. An unseen speaker is left out, for nobody can name him.

    Attributes:
        block: takes of one owner.
        classes: the speakers in the order of their labels; () for those of the names.
    """

    name: ClassVar[str] = "speaker"

    block: int = 9

    def __post_init__(self) -> None:
        SpeechTask.__post_init__(self)
        check.at_least(1, block=self.block)

    def load(self, folder: Path | None) -> TaskData:
        """Read the recordings as log-mel spectrograms: bytes (N, 1, mels, frames); kept for the next call."""
        return _load(self, folder)


@lru_cache(maxsize=2)
def _load(task: SpeakerTask, folder: Path | None) -> TaskData:
    spoken = recordings(task, folder)
    classes = label_space(task.classes or class_names(name for name in spoken.speakers if name != task.unseen))
    # The unseen speaker has no label; his recordings come neither into the pool nor into the test part.
    known = [name if name != task.unseen else classes[0] for name in spoken.speakers]
    digits = len(str(max(spoken.takes)))
    owners = []
    for take in spoken.takes:
        first = task.test_takes + (take - task.test_takes) // task.block * task.block
        owners.append(f"takes-{first:0{digits}d}-{first + task.block - 1:0{digits}d}")
    everything = Examples(spoken.spectra, class_positions(known, classes, task.source), tuple(owners))
    return divided(everything, spoken, task, unseen_is_tested=False, classes=classes)
