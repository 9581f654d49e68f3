"""A codec packs the arrays of knowledge for the wire and unpacks them on the other side. One file each in `codecs/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fedstill.common.knowledge import Arrays

Known = Mapping[str, Sequence[NDArray[np.float32] | None]]
"""Of some arrays what both sides know already: earlier ones of the same shape, NaN where there is nothing, or None."""


class Codec(Protocol):
    """How arrays travel.

    Attributes:
        name: by which it is found; the file's name.
        paper: where it comes from; "" if nowhere.

    A codec that can hold distributions over classes only says so in a class attribute `only_distributions = True`:
    scenarios that exchange anything else refuse it. One that makes use of what both sides remember says
    `uses_context = True`, and its methods take a second argument: see `ContextCodec`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    def encode(self, arrays: Arrays) -> Arrays:
        """Arrays for the wire."""

    def decode(self, arrays: Arrays) -> Arrays:
        """The inverse, up to the codec's loss.

        Raises:
            KnowledgeError: if the arrays are none of this codec's.
        """


class ContextCodec(Codec, Protocol):
    """A codec that codes in the context of what both sides know; without any, its messages are self-contained."""

    uses_context: ClassVar[bool]

    def encode(self, arrays: Arrays, known: Known = {}) -> Arrays:
        """Arrays for the wire."""

    def decode(self, arrays: Arrays, known: Known = {}) -> Arrays:
        """The inverse, with the same context.

        Raises:
            KnowledgeError: with the reason "other-context" if it is another one.
        """


def with_context(codec: Codec) -> ContextCodec | None:
    """The codec, if it makes use of a context."""
    return cast(ContextCodec, codec) if getattr(codec, "uses_context", False) else None
