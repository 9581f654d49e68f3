"""How a trained model is used outside of a run: what prepares its inputs, reads files, and tells its answers.

Free of torch and Flower. A task that says so can be exported together with its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedstill.common.data.preparation import Preparation
from fedstill.common.data.readers import Reader

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model needs beside its weights.

    Attributes:
        preparation: makes of raw inputs what the model reads.
        reader: makes raw inputs of files; None where only arrays are read.
        files: contents of files that the reader needs, by name.
        lead: of a label for each token, how many classes are answers of position 0 (0: it answers nothing); the
            positions behind it answer the other ones. None where every position answers all classes.
        new_only: candidates that the raw input holds already are no answer.
        scale: what the answers 0 and 1 of a regression stand for.
    """

    preparation: Preparation
    reader: Reader | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    lead: int | None = None
    new_only: bool = False
    scale: tuple[float, float] = (0.0, 1.0)


@runtime_checkable
class TellsUsage(Protocol):
    """A task whose models can be used outside of a run on raw inputs; others take inputs that are prepared."""

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """What its models need.

        Args:
            folder: the data folder.
            proxy: raw inputs of the proxy set.

        Raises:
            DataError: if data is missing or broken.
        """
