"""A model that can be asked: weights, what it reads, what it gives, and what is said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.inference import about
from fedstill.common.inference.about import INPUT, LOGITS, PROBABILITIES
from fedstill.common.learning import Training, predict
from fedstill.common.task import TaskSpec

BLOCK = 16
"""Rows are computed in multiples of so many: a matrix product then treats all of them alike, whoever is in a batch."""

OUTPUTS = (LOGITS, PROBABILITIES)

InputType = Literal["FP32", "INT64"]


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A model under its name.

    Attributes:
        name: by which it is asked for.
        version: a number in decimals.
        spec: its task, over the classes that it knows.
        architecture: FAMILY-SIZE.
        model: in evaluation mode; nobody trains it any more.
        training: layout and precision in which it is computed.
        proxy: digest of the proxy set that its inputs were prepared with.
        run: in which it was trained.
    """

    name: str
    version: str
    spec: TaskSpec
    architecture: str
    model: nn.Module
    training: Training
    proxy: str
    run: str

    @property
    def input_type(self) -> InputType:
        """Datatype of the inputs: token ids are whole numbers."""
        return "INT64" if self.spec.vocabulary else "FP32"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one row."""
        return (*self.spec.positions, len(self.spec.classes))

    def properties(self) -> dict[str, str]:
        """What its metadata says beyond the protocol."""
        return about.properties(
            self.spec,
            architecture=self.architecture,
            proxy=self.proxy,
            weights=weights_digest(self.model.state_dict()),
            run=self.run,
        )

    def check(self, inputs: NDArray[np.generic]) -> None:
        """Refuse inputs that the model cannot read.

        Args:
            inputs: (N, …) of `input_type`.

        Raises:
            KnowledgeError: for another shape, numbers that are not finite, or token ids beyond the vocabulary.
        """
        if inputs.shape[1:] != self.spec.input_shape or not len(inputs):
            raise KnowledgeError(
                f"tensor '{INPUT}' of shape {list(inputs.shape)}",
                f"expected {[-1, *self.spec.input_shape]} with at least one row",
                "prepare the inputs as the model's task does",
                reason=Reason.SHAPE,
            )
        if self.spec.vocabulary:
            low, high = int(inputs.min(initial=0)), int(inputs.max(initial=0))
            if low < 0 or high >= self.spec.vocabulary:
                raise KnowledgeError(
                    f"token id {low if low < 0 else high}",
                    f"expected 0 to {self.spec.vocabulary - 1}",
                    "use the model's own vocabulary",
                    reason=Reason.RANGE,
                )
        elif not np.isfinite(inputs).all():
            row = int(np.flatnonzero(~np.isfinite(inputs).reshape(len(inputs), -1).all(1))[0])
            raise KnowledgeError(
                f"row {row} of tensor '{INPUT}' with NaN or infinity",
                "expected finite numbers",
                "leave the row out, or mend it",
                reason=Reason.NOT_FINITE,
            )

    def answer(self, parts: list[NDArray[np.generic]], *, block: int) -> Tensor:
        """Raw outputs (N, …, C) in float32 for rows from several requests, one after the other.

        Args:
            parts: (N_i, …) each, as `check` wants them.
            block: the number of rows is filled up to a multiple of it, with copies of the first.
        """
        rows = sum(len(part) for part in parts)
        kind = torch.int64 if self.spec.vocabulary else torch.float32
        inputs = torch.empty((-(-rows // block) * block, *self.spec.input_shape), dtype=kind)
        np.concatenate(parts, out=inputs.numpy()[:rows])
        inputs[rows:] = inputs[0]
        return predict(self.model, inputs, training=self.training)[:rows]

    def soft(self, logits: Tensor) -> Tensor:
        """Soft labels at temperature 1."""
        return self.spec.kind.soften(logits, 1.0)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents, in hexadecimal; the same whatever the order or memory layout."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name].numpy())
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
