"""The intents of a voice assistant's commands, on the inputs of `slots`: the same commands, another question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from fedstill.common import check
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TextLines
from fedstill.common.data.snips import load_commands
from fedstill.common.labels import Classes
from fedstill.common.metrics import accuracy, macro_f1
from fedstill.common.task import TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class IntentTask:
    """Tell the intent of a command to a voice assistant.

    Attributes:
        source: the zip archive or folder of SNIPS.
        vocabulary: token ids are below it; the last one stands at position 0.
        length: words of a command that are read.
    """

    name: ClassVar[str] = "intent"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "text"

    source: str = "snips"
    vocabulary: int = 8192
    length: int = 24

    def __post_init__(self) -> None:
        check.at_least(3, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length)

    def load(self, folder: Path | None) -> TaskData:
        """Read the commands as token ids (N, 1 + length); kept for the next call in this process."""
        return load_commands(self.source, folder, "intent", vocabulary=self.vocabulary, length=self.length)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of text, a command each."""
        return Usage(AsRead(), TextLines(self.vocabulary, self.length, mark=True))

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Accuracy and macro-F1."""
        return {"accuracy": accuracy(logits, targets), "macro-f1": macro_f1(logits, targets)}
