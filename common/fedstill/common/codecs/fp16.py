"""Half precision: half the bytes, relative error 2⁻¹¹."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError
from fedstill.common.knowledge import Arrays


@dataclass(frozen=True, slots=True)
class FP16:
    """Floating-point arrays in half precision, 16 bits a number."""

    name: ClassVar[str] = "fp16"
    paper: ClassVar[str] = "IEEE 754-2008"

    def encode(self, arrays: Arrays) -> Arrays:
        """Round float arrays to float16; others stay as they are.

        Raises:
            KnowledgeError: if a number is beyond float16's range.
        """
        return {name: _half(name, array) if array.dtype.kind == "f" else array for name, array in arrays.items()}

    def decode(self, arrays: Arrays) -> Arrays:
        """float16 arrays as float32."""
        return {
            name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in arrays.items()
        }


def _half(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    largest = np.finfo(np.float16).max
    if array.size and np.abs(array).max() > largest:
        raise KnowledgeError(f"'{name}' of {np.abs(array).max():.3g}", f"expected at most {largest}", "use codec 'raw'")
    return array.astype(np.float16)
