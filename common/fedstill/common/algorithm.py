"""An algorithm is four functions: how a run starts, what a client takes in, what it gives, what the server makes of it.

    start   server             → knowledge for the first round, or None
    absorb  client ← knowledge   the shared knowledge changes the student
    local   client             → the student learns from private data and answers
    merge   server ← answers   → the consensus, or the new global model

A published method is one file in `algorithms/`: a frozen dataclass of its hyper-parameters with these four methods,
both halves together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import UnsupportedError
from fedstill.common.knowledge import Contribution, Form, Knowledge
from fedstill.common.outputs import OUTPUTS
from fedstill.common.sides import Client, Server

EVERY_OUTPUT = frozenset(OUTPUTS.names())


class Algorithm(Protocol):
    """A federated method.

    Attributes:
        name: by which it is found; the file's name.
        paper: authors, year, address; "" if there is none.
        outputs: the output kinds that it can average.
        exchange: what a client sends: "soft-labels", "relations", "features", "prototypes", "parameters", "nothing",
            or "data" (all data in one place: no client is asked).
        homogeneous: it needs the same model on all clients.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    outputs: ClassVar[frozenset[str]]
    exchange: ClassVar[str]
    homogeneous: ClassVar[bool]

    def start(self, server: Server) -> Knowledge | None:
        """Knowledge for the first round, before any client has spoken; None if there is none."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Take the shared knowledge into the student."""

    def local(self, client: Client) -> Knowledge | None:
        """Learn from the private data and answer; None for a method without exchange."""

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Knowledge | None:
        """Turn what was admitted, sorted by client, into the next round's knowledge."""


def asked(method: Algorithm) -> tuple[Form, float]:
    """Form and temperature of the soft labels that a method's clients answer with.

    Probabilities at temperature 1, unless the method says otherwise in a property `asked`. The server takes nothing
    else: answers at different temperatures have no mean.
    """
    usual: tuple[Form, float] = ("probabilities", 1.0)
    told: tuple[Form, float] = getattr(method, "asked", usual)
    return told


def parts(method: Algorithm) -> frozenset[str]:
    """What a method's prototypes are made of: "features", "predictions" or both, as its class variable `parts` says.

    Nothing for a method that exchanges something else.
    """
    told: frozenset[str] = getattr(method, "parts", frozenset())
    return told


def due(method: Algorithm) -> Callable[[Server], NDArray[np.int64]] | None:
    """How a method chooses the proxy samples (ids, at least one) that clients are asked about in a round.

    None for one that asks about all that the round is about (`server.samples`). A method that asks about fewer has a
    function `due(server)`; it must not change what the server remembers.
    """
    choose: Callable[[Server], NDArray[np.int64]] | None = getattr(method, "due", None)
    return choose


def recalls(method: Algorithm) -> bool:
    """Whether clients keep what they are told, as a method's class variable `recalls` says.

    Rows that a client has been told already then do not travel again; its `absorb` sees all of them.
    """
    told: bool = getattr(method, "recalls", False)
    return told


def feature_width(method: Algorithm, widths: Collection[int]) -> int:
    """Width of the features in the prototypes of a method's clients; 0 if it has none.

    Args:
        method: the method. One that can bring features to one width says so in an option `width` > 0.
        widths: of the clients' own features.

    Raises:
        UnsupportedError: if the clients' widths differ, and the method cannot do without one.
    """
    if "features" not in parts(method):
        return 0
    wanted: int = getattr(method, "width", 0)
    if not wanted and len(set(widths)) > 1:
        raise UnsupportedError(
            f"algorithm '{method.name}' with models whose last layers read {sorted(set(widths))} features",
            "expected one width on all clients, because it averages features",
            f"set algorithm.width={min(widths)}, or give all clients one model"
            if hasattr(method, "width")
            else "give all clients one model, or choose a method that sends predictions, such as fd",
        )
    return wanted or next(iter(widths))
