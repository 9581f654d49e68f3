"""A codec packs the arrays of knowledge for the wire and unpacks them on the other side. One file each in `codecs/`."""

from __future__ import annotations

from typing import ClassVar, Protocol

from fedstill.common.knowledge import Arrays


class Codec(Protocol):
    """How arrays travel.

    Attributes:
        name: by which it is found; the file's name.
        paper: where it comes from; "" if nowhere.

    A codec that can hold distributions over classes only says so in a class attribute `only_distributions = True`:
    scenarios that exchange anything else refuse it.
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
