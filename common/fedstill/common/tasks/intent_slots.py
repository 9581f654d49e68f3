"""A voice assistant's two questions at once, what is wanted and what about: one model answers both.

Liu and Lane 2016, https://arxiv.org/abs/1609.01454 (joint intent detection and slot filling).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.bio import is_tag, tag_rows
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TextLines
from fedstill.common.data.snips import load_commands
from fedstill.common.labels import Classes
from fedstill.common.metrics import accuracy
from fedstill.common.outputs import IGNORE
from fedstill.common.tagging_metrics import entity_f1
from fedstill.common.task import TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class IntentSlotsTask:
    """Tell the intent of a command and tag its slots, with one model.

    The label space is that of the intents and of the slots' BIO tags. Position 0 of a command answers the intent, with
    the likeliest of the intents; the positions behind it answer the slots, each with the likeliest of the tags.

    Attributes:
        source: the zip archive or folder of SNIPS.
        vocabulary: token ids are below it; the last one stands at position 0.
        length: words of a command that are read.
    """

    name: ClassVar[str] = "intent-slots"
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
        return load_commands(self.source, folder, "both", vocabulary=self.vocabulary, length=self.length)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of text, a command each; position 0 answers the intent."""
        intents = [name for name in self.load(folder).classes if not is_tag(name)]
        return Usage(AsRead(), TextLines(self.vocabulary, self.length, mark=True), lead=len(intents))

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """F1 of whole slots, accuracy of intents, and share of commands of which both are right (frame-accuracy)."""
        tags = torch.tensor([is_tag(name) for name in classes])
        intents = logits[:, 0].masked_fill(tags, -torch.inf)
        labels = logits[:, 1:].masked_fill(~tags, -torch.inf).argmax(-1)
        true = targets[:, 1:]
        frames = (intents.argmax(-1) == targets[:, 0]) & ((labels == true) | (true == IGNORE)).all(-1)
        return {
            "slot-f1": entity_f1(tag_rows(labels, true, classes), tag_rows(true, true, classes)),
            "intent-accuracy": accuracy(intents, targets[:, 0]),
            "frame-accuracy": float(frames.double().mean()) if len(frames) else 0.0,
        }
