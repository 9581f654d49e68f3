"""The proxy set: public, unlabelled samples that every side holds, and the digest by which they agree on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.errors import ConfigError, DataError, KnowledgeError, Reason
from fedstill.common.seeding import numpy_rng

Choose = Callable[[int, np.random.Generator], NDArray[np.int64]]
"""So many different samples, chosen with the help of chance."""


@dataclass(frozen=True, slots=True, eq=False)
class ProxySet:
    """Public inputs of one task; a sample's id is its row.

    Attributes:
        inputs: (P, …) inputs as the models read them.
        digest: of content, shape and type: see `content_digest`.

    Raises:
        DataError: if a sample has numbers that are not finite.
    """

    inputs: Tensor
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.inputs.is_floating_point() and not torch.isfinite(self.inputs).all():
            broken = torch.nonzero(~torch.isfinite(self.inputs.flatten(1)).all(1))[0, 0]
            raise DataError(
                f"proxy sample {int(broken)} with numbers that are not finite",
                "expected inputs that a model can read",
                "mend or leave out the sample, or fill gaps in the task's `prepare`",
            )
        object.__setattr__(self, "digest", content_digest(self.inputs))

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, samples: NDArray[np.int64]) -> Tensor:
        """Inputs of those samples.

        Raises:
            KnowledgeError: if an id is outside the set.
        """
        if len(samples) and (samples.min() < 0 or samples.max() >= len(self)):
            raise KnowledgeError(
                f"proxy sample {samples.min() if samples.min() < 0 else samples.max()}",
                f"expected 0 to {len(self) - 1}",
                reason=Reason.SAMPLES,
            )
        if len(samples) == len(self) and (samples == np.arange(len(self))).all():
            return self.inputs
        return self.inputs[samples.tolist()]

    def draw(self, count: int, *, seed: int, choose: Choose | None = None) -> NDArray[np.int64]:
        """The ids of `count` samples, sorted; all of them for `count` 0.

        Args:
            count: how many.
            seed: of chance.
            choose: which, if not all; None for a sample without replacement.

        Raises:
            ConfigError: if the set is smaller than that.
        """
        if count == 0 or count == len(self):
            return np.arange(len(self), dtype=np.int64)
        if count > len(self):
            raise ConfigError(f"proxy.per-round={count}", f"expected at most {len(self)}, the size of the proxy set")
        chance = numpy_rng(seed, "proxy")
        drawn = chance.choice(len(self), count, replace=False) if choose is None else choose(count, chance)
        return np.sort(drawn).astype(np.int64)


def content_digest(inputs: Tensor) -> str:
    """A tensor's type, shape and content in sixteen hexadecimal digits, independent of its memory layout.

    The first quarter of SHA-256: it tells sets apart that differ by accident, travels in every message, and guards
    against nobody who wants two sets to look the same.
    """
    array = np.ascontiguousarray(inputs.numpy())
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()[:16]
