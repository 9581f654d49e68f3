"""The state of a run between two rounds: an explicit value, from which everything goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedstill.common.context import Remembered
from fedstill.common.knowledge import Knowledge


@dataclass(frozen=True, slots=True, eq=False)
class TaskState:
    """One task's part of the state.

    Attributes:
        knowledge: what the clients are told next, or None.
        model: weights of the server's model.
        memory: what method and teacher keep.
        own: what each client told last, as far as a codec with a context makes use of it.
        heard: what the clients of the last step were told, likewise; None where each was told something else.
        personal: by client, what is told in place of `knowledge`.
        recalled: who remembers which labels, for a method whose clients keep what they are told; see `telling`.
        pool: what is known of the proxy samples, for a strategy that chooses among them; see `querying`.
    """

    knowledge: Knowledge | None
    model: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    own: Mapping[str, Remembered] = field(default_factory=dict)
    heard: Remembered | None = None
    personal: Mapping[str, Knowledge] = field(default_factory=dict)
    recalled: Mapping[str, Tensor] = field(default_factory=dict)
    pool: Mapping[str, Tensor] = field(default_factory=dict)

    def told(self, client: str) -> Knowledge | None:
        """What a client is told next."""
        return self.personal.get(client, self.knowledge)


@dataclass(frozen=True, slots=True, eq=False)
class RunState:
    """Everything that a run needs to go on.

    Attributes:
        step: the last committed one: 0 after everybody was measured alone, 1 … R for the rounds, R + 1 for the finish;
            -1 before anything.
        tasks: by name.
        versions: of each client's student: the round after which it was saved.
        record: what the last step is told to the world; see `record.StepRecord`.
    """

    step: int
    tasks: Mapping[str, TaskState]
    versions: Mapping[str, int] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
