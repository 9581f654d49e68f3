"""An exported student at work in onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.client.card import Card, read_card
from fedstill.client.predicting.answers import Answer, answers
from fedstill.common.data.preparation import Array
from fedstill.common.errors import ConfigError, DataError, UnsupportedError

BATCH = 128
"""Samples of a call, unless said otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """A model that was exported as ONNX, ready to answer.

    Attributes:
        card: what it is.
        folder: where it lies.
        session: onnxruntime's.
    """

    card: Card
    folder: Path
    session: Any

    def prepare(self, raw: Array) -> Array:
        """Raw inputs (N, …) as the model reads them.

        Raises:
            UnsupportedError: if only the task's own code can prepare them.
            DataError: if they are of another shape.
        """
        if self.card.preparation is None:
            raise UnsupportedError(
                f"raw inputs for task '{self.card.task}' of kind '{self.card.kind}'",
                "expected inputs that are prepared, for the task does not say how",
                "give them with --prepared",
            )
        try:
            ready = self.card.preparation.apply(raw)
        except (ValueError, IndexError, TypeError) as error:
            raise self._unsuitable(raw, str(error)) from None
        # One column, or one channel, would do for all of them.
        if raw.shape[: ready.ndim] != ready.shape:
            raise self._unsuitable(raw, f"they would be {ready.shape}")
        return ready

    def _unsuitable(self, raw: Array, why: str) -> DataError:
        return DataError(
            f"raw inputs of shape {raw.shape} and type {raw.dtype}",
            f"cannot be prepared for inputs of shape {self.card.input_shape}: {why}",
            "give inputs as the task reads them",
        )

    def run(self, inputs: Array, *, batch: int = BATCH) -> NDArray[np.float32]:
        """Raw outputs (N, …, C) of prepared inputs (N, …).

        Raises:
            DataError: if they are of another shape, not finite, or token ids outside the vocabulary.
        """
        ready = self._checked(inputs)
        parts = [self.session.run(None, {"inputs": ready[at : at + batch]})[0] for at in range(0, len(ready), batch)]
        outputs: NDArray[np.float32] = np.concatenate(parts)
        return outputs

    def answer(self, raw: Array, *, prepared: bool = False, batch: int = BATCH, top: int = 3) -> list[Answer]:
        """What the student says of raw inputs (N, …).

        Args:
            raw: inputs as the task reads them.
            prepared: they are as the model reads them.
            batch: samples of a call.
            top: see `answers`.

        Raises:
            DataError, UnsupportedError: as `prepare` and `run`.
        """
        inputs = raw if prepared else self.prepare(raw)
        return answers(self.card, self.run(inputs, batch=batch), raw=raw, inputs=inputs, top=top)

    def _checked(self, inputs: Array) -> Array:
        card = self.card
        if inputs.shape[1:] != card.input_shape or not len(inputs):
            raise DataError(
                f"inputs of shape {inputs.shape}",
                f"expected (N, {', '.join(map(str, card.input_shape))}) with N >= 1",
                "give inputs as the task reads them",
            )
        if card.input_type == "int64":
            if not np.issubdtype(inputs.dtype, np.integer) or inputs.min() < 0 or inputs.max() >= card.vocabulary:
                raise DataError(
                    f"token ids of type {inputs.dtype}", f"expected whole numbers from 0 to {card.vocabulary - 1}"
                )
            return inputs.astype(np.int64)
        ready = inputs.astype(np.float32)
        if not np.isfinite(ready).all():
            raise DataError("inputs with numbers that are not finite", "expected inputs that a model can read")
        return ready


def open_student(folder: Path) -> Student:
    """The student in a folder that `fedstill export` wrote.

    Raises:
        DataError: if there is none, or its files are damaged.
        UnsupportedError: if it is of a format that onnxruntime does not read.
        ConfigError: if onnxruntime is not installed.
    """
    card = read_card(folder)
    if card.format != "onnx":
        raise UnsupportedError(
            f"exported student {folder} of format '{card.format}'", "expected 'onnx'", "export it with --format onnx"
        )
    return Student(card, folder, open_session(folder / card.file))


def open_session(path: Path) -> Any:
    """A session of onnxruntime on one thread of the CPU.

    Raises:
        ConfigError: if onnxruntime is not installed.
        DataError: if the file is no model that it can run.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ConfigError("package 'onnxruntime'", "is not installed", "pip install 'fedstill[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common root but this
        raise DataError(f"{path}", f"is no model that onnxruntime can run: {error}", "export it again") from None
