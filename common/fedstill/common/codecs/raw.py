"""float32 as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedstill.common.knowledge import Arrays


@dataclass(frozen=True, slots=True)
class Raw:
    """Arrays as they are, 32 bits a number."""

    name: ClassVar[str] = "raw"
    paper: ClassVar[str] = ""

    def encode(self, arrays: Arrays) -> Arrays:
        """The arrays themselves."""
        return arrays

    def decode(self, arrays: Arrays) -> Arrays:
        """The arrays themselves."""
        return arrays
