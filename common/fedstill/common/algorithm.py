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

from fedstill.common.errors import ConfigError, UnsupportedError
from fedstill.common.knowledge import Contribution, Form, Knowledge, Layout, Personal
from fedstill.common.outputs import OUTPUTS
from fedstill.common.sides import Client, ClientInfo, Server
from fedstill.common.task import TaskSpec

EVERY_OUTPUT = frozenset(OUTPUTS.names())


class Algorithm(Protocol):
    """A federated method.

    Attributes:
        name: by which it is found; the file's name.
        paper: authors, year, address; "" if there is none.
        outputs: the output kinds that it can average.
        exchange: what a client sends: "soft-labels", "relations", "features", "prototypes", "embeddings", "parameters",
            "nothing", or "data" (all data in one place: no client is asked).
        homogeneous: it needs the same model on all clients.

    A method may say more of itself in class variables: `teaches`, that its `merge` trains the server's model and
    answers with what that model predicts; `one_round`, that a run of it has a single round; and those that the
    functions below read. A method that sends something beside weights says what in a method `beside(samples)`: names,
    shapes and types for a round of so many proxy samples. One that cannot do with all models says so in a method
    `check_clients(spec, model, clients)`, which raises UnsupportedError before the run: see `check_clients` below.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    outputs: ClassVar[frozenset[str]]
    exchange: ClassVar[str]
    homogeneous: ClassVar[bool]

    def start(self, server: Server) -> Knowledge | Personal | None:
        """Knowledge for the first round, before any client has spoken; None if there is none."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Take the shared knowledge into the student."""

    def local(self, client: Client) -> Knowledge | None:
        """Learn from the private data and answer; None for a method without exchange."""

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Knowledge | Personal | None:
        """Turn what was admitted, sorted by client, into the next round's knowledge: one for all, or each its own."""


def asked(method: Algorithm) -> tuple[Form, float]:
    """Form and temperature of the soft labels that a method's clients answer with.

    Probabilities at temperature 1, unless the method says otherwise in a property `asked`. The server takes nothing
    else: answers at different temperatures have no mean.
    """
    usual: tuple[Form, float] = ("probabilities", 1.0)
    told: tuple[Form, float] = getattr(method, "asked", usual)
    return told


def parts(method: Algorithm) -> frozenset[str]:
    """What a method's prototypes or embeddings are made of, as its class variable `parts` says.

    "features", "predictions" or both; nothing for a method that exchanges something else.
    """
    told: frozenset[str] = getattr(method, "parts", frozenset())
    return told


def weighs(method: Algorithm) -> frozenset[str]:
    """The output kinds for which `absorb` heeds `client.trust`, as a method's class variable `weighs` says.

    For all others an adaptive client moves the student's weights back towards what they were before.
    """
    told: frozenset[str] = getattr(method, "weighs", frozenset())
    return told


def beside(method: Algorithm, samples: int) -> Layout:
    """What a method's clients send beside weights in a round of so many proxy samples; nothing unless it says so."""
    told: Callable[[int], Layout] | None = getattr(method, "beside", None)
    return told(samples) if told is not None else {}


def reads_features(method: Algorithm | type[Algorithm]) -> bool:
    """Whether a method needs models whose features can be learnt, though it sends none: `reads_features`."""
    told: bool = getattr(method, "reads_features", False)
    return told


def own_weights(method: Algorithm | type[Algorithm]) -> bool:
    """Whether clients send weights of models of their own kind, which the server rebuilds by name: `own_weights`."""
    told: bool = getattr(method, "own_weights", False)
    return told


def check_clients(method: Algorithm, spec: TaskSpec, model: str, clients: Collection[ClientInfo]) -> None:
    """Let a method refuse the clients' and the server's models before the run.

    Args:
        method: the method.
        spec: the task.
        model: name of the server's model.
        clients: who has the task.

    Raises:
        UnsupportedError: if the method says so.
    """
    refuse: Callable[[TaskSpec, str, Collection[ClientInfo]], None] | None = getattr(method, "check_clients", None)
    if refuse is not None:
        refuse(spec, model, clients)


def teaches(method: Algorithm | type[Algorithm]) -> bool:
    """Whether a method's `merge` trains the server's model and answers with what that model predicts."""
    told: bool = getattr(method, "teaches", False)
    return told


def one_round(method: Algorithm | type[Algorithm]) -> bool:
    """Whether a run of the method has a single round."""
    told: bool = getattr(method, "one_round", False)
    return told


def check_plan(method: Algorithm | type[Algorithm], *, teacher: str, rounds: int) -> None:
    """Refuse a teacher, or a number of rounds, that has no meaning beside a method.

    Raises:
        ConfigError: with the way out.
    """
    if teaches(method) and teacher != "consensus":
        raise ConfigError(
            f"teacher '{teacher}' with algorithm '{method.name}'",
            "expected 'consensus', because the method trains the server's model itself",
            'set teacher.kind = "consensus", or choose a method without a teacher of its own, such as fedmd',
        )
    if one_round(method) and rounds != 1:
        raise ConfigError(
            f"rounds.count={rounds} with algorithm '{method.name}'",
            "expected 1, because clients speak once, with models trained to the end",
            "set rounds.count = 1, and training.epochs to as many as the models need",
        )


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
    """Width of the features in the prototypes or embeddings of a method's clients; 0 if it has none.

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
            "expected one width on all clients, because it puts their features together",
            f"set algorithm.width={min(widths)}, or give all clients one model"
            if hasattr(method, "width")
            else "give all clients one model, or choose a method that sends predictions, such as fd",
        )
    return wanted or next(iter(widths))
