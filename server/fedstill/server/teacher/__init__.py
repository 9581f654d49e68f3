"""Shared teachers: what the server makes of the consensus before it goes back. One file each, found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

from fedstill.common.knowledge import SoftLabels
from fedstill.common.registry import Registry
from fedstill.common.sides import Server
from fedstill.common.task import TaskSpec

TEACHERS = Registry("teacher", "fedstill.server.teacher", "fedstill.teachers")


class Teacher(Protocol):
    """The server's part in a method that exchanges predictions: a frozen dataclass of options with two methods.

    Attributes:
        name: by which it is found; the file's name.
        paper: where it comes from; "" if nowhere.
        has_model: it keeps the server's model, which can be measured and saved.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    has_model: ClassVar[bool]

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """What it teaches before any client has spoken, by task; nothing of a task that it knows nothing about.

        Args:
            servers: the server's side of each task.
        """

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """Take in a round's consensus and give what the clients are to learn from.

        Args:
            servers: the server's side of each task.
            consensus: of each task that somebody spoke about.

        Returns:
            Soft labels by task; a task that is left out keeps what it had.
        """


@runtime_checkable
class LooksAhead(Protocol):
    """A teacher that finds out before a run begins whether it can teach: clients need not work for nothing."""

    def look_ahead(self, specs: Mapping[str, TaskSpec]) -> None:
        """Raise a FedstillError if it cannot teach these tasks.

        Args:
            specs: the run's tasks by name.
        """
