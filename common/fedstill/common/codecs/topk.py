"""Of long distributions the largest probabilities and their places: nearly all mass is on few tokens.

Tan et al. 2019 (https://arxiv.org/abs/1902.10461, section 3.2) keep the eight largest of a teacher's probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common import check
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Arrays

LARGEST = 2**28
"""Numbers of an unpacked array: a small message must not fill the memory."""

_PLACES, _WIDTH = ":places", ":width"


@dataclass(frozen=True, slots=True)
class TopK:
    """The 16 largest probabilities of each distribution over more than 32 classes, brought to its sum; 0 elsewhere.

    Attributes:
        kept: k, probabilities that remain of a row; rows of at most 2 k stay as they are.

    Raises:
        ConfigError: for k outside 1 to 32,768.
    """

    name: ClassVar[str] = "topk"
    paper: ClassVar[str] = "Tan et al. 2019, https://arxiv.org/abs/1902.10461"

    kept: int = 16

    def __post_init__(self) -> None:
        check.between(1, 2**15, codec_kept=self.kept)

    def encode(self, arrays: Arrays) -> Arrays:
        """Three arrays for one of distributions: probabilities, their places and the row's width.

        Others stay as they are: a few of a model's weights, or of its raw outputs, do not tell the rest.
        """
        packed: dict[str, NDArray[np.generic]] = {}
        for name, array in arrays.items():
            if _has_long_distributions(array, self.kept):
                places = np.sort(np.argpartition(array, -self.kept, axis=-1)[..., -self.kept :], axis=-1)
                packed[name] = _scaled(np.take_along_axis(array, places, -1), array.sum(-1, keepdims=True))
                packed[name + _PLACES] = places.astype(np.uint16)
                packed[name + _WIDTH] = np.array(array.shape[-1], dtype=np.int64)
            else:
                packed[name] = array
        return packed

    def decode(self, arrays: Arrays) -> Arrays:
        """The distributions, with zeros at the places that were left out."""
        return {
            name: _spread(name, arrays) if name + _PLACES in arrays else array
            for name, array in arrays.items()
            if not name.endswith((_PLACES, _WIDTH))
        }


def _has_long_distributions(array: NDArray[np.generic], kept: int) -> bool:
    """Whether each row has more than 2 k numbers >= 0 that sum to 1 or to 0 (no label)."""
    if array.dtype.kind != "f" or array.ndim < 2 or not 2 * kept < array.shape[-1] <= 2**16 or not array.size:
        return False
    total = array.sum(-1)
    return bool(array.min() >= 0) and bool(((np.abs(total - 1) < 1e-3) | (total == 0)).all())


def _scaled(values: NDArray[np.generic], total: NDArray[np.generic]) -> NDArray[np.generic]:
    """Values times what brings each row to its total; a row of zeros stays."""
    own = values.sum(-1, keepdims=True)
    factor = np.divide(total, own, out=np.zeros_like(own), where=own > 0)
    scaled: NDArray[np.generic] = np.minimum(values * factor, 1).astype(values.dtype)  # rounding may lead above 1
    return scaled


def _spread(name: str, arrays: Arrays) -> NDArray[np.generic]:
    values, places = arrays[name], arrays[name + _PLACES]
    told = arrays.get(name + _WIDTH)
    width = int(told) if told is not None and told.ndim == 0 and told.dtype.kind in "iu" else 0
    if places.shape != values.shape or places.dtype != np.uint16 or not places.max(initial=0) < width:
        raise KnowledgeError(
            f"'{name}' with {values.shape} values at {places.shape} places of {width}",
            "expected one place inside the row for each value",
            reason=Reason.SHAPE,
        )
    shape = (*values.shape[:-1], width)
    if np.prod(shape, dtype=np.float64) > LARGEST:
        raise KnowledgeError(
            f"'{name}' of unpacked shape {shape}", f"expected at most {LARGEST} numbers", reason=Reason.TOO_LARGE
        )
    full = np.zeros(shape, dtype=values.dtype)
    np.put_along_axis(full, places.astype(np.int64), values, -1)
    return full
