"""The slots of a voice assistant's commands, on the inputs of `intent`: the same commands, another question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from fedstill.common import check
from fedstill.common.data.bio import tag_rows
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TextLines
from fedstill.common.data.snips import load_commands
from fedstill.common.labels import Classes
from fedstill.common.tagging_metrics import entity_f1, token_f1
from fedstill.common.task import TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class SlotsTask:
    """Tag the slots of a command to a voice assistant.

    Attributes:
        source: the zip archive or folder of SNIPS.
        vocabulary: token ids are below it; the last one stands at position 0, which has no tag.
        length: words of a command that are read.
    """

    name: ClassVar[str] = "slots"
    output: ClassVar[str] = "token-level"
    modality: ClassVar[str] = "text"

    source: str = "snips"
    vocabulary: int = 8192
    length: int = 24

    def __post_init__(self) -> None:
        check.at_least(3, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length)

    def load(self, folder: Path | None) -> TaskData:
        """Read the commands as token ids (N, 1 + length); kept for the next call in this process."""
        return load_commands(self.source, folder, "slots", vocabulary=self.vocabulary, length=self.length)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of text, a command each; position 0 has no tag."""
        return Usage(AsRead(), TextLines(self.vocabulary, self.length, mark=True), lead=0)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """F1 of whole slots (slot-f1), then of tags other than O (token-f1)."""
        labels = logits.argmax(-1)
        return {
            "slot-f1": entity_f1(tag_rows(labels, targets, classes), tag_rows(targets, targets, classes)),
            "token-f1": token_f1(labels, targets, classes),
        }
