"""How many optimiser steps a run takes, counted where they are taken: what a budget says is what was done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedstill.common.stepping import watch_steps

CLIENTS, SERVER = "clients", "server"


class StepCounter:
    """A tracker that writes a line with the optimiser steps of all clients and of the server for each committed step.

    It counts every optimiser of this process, so one run at a time, whose clients work here too.
    """

    def __init__(self, path: Path) -> None:
        """Begin to count.

        Args:
            path: the file, which is gone on with.
        """
        self._path = path
        self._counts = Counter[str]()
        self._side = SERVER
        # Torch's own optimisers too, for a method may use one.
        self._hook = register_optimizer_step_post_hook(self._count)
        self._unwatch = watch_steps(self._count)

    def around(self, app: ClientApp) -> ClientApp:
        """The app, whose steps count as the clients'."""
        return _Counted(self, app)

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Write down what was counted since the last committed step."""
        line = {"step": record["step"], CLIENTS: self._counts[CLIENTS], SERVER: self._counts[SERVER]}
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._counts.clear()

    def close(self) -> None:
        """Count no more."""
        self._hook.remove()
        self._unwatch()

    def as_client(self, app: ClientApp, message: Message, context: Context) -> Message:
        """A client's reply, with its steps counted as such."""
        self._side = CLIENTS
        try:
            return app(message, context)
        finally:
            self._side = SERVER

    def _count(self, *_: object) -> None:
        self._counts[self._side] += 1


class _Counted(ClientApp):
    def __init__(self, counter: StepCounter, inner: ClientApp) -> None:
        super().__init__()
        self._counter = counter
        self._inner = inner

    def __call__(self, message: Message, context: Context) -> Message:
        return self._counter.as_client(self._inner, message, context)


def counted(path: Path, *, first: int, last: int) -> dict[str, int] | None:
    """The optimiser steps of a range of committed steps, by side; None if one of them was not counted."""
    found: dict[int, Mapping[str, int]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn by a crash
            found[told["step"]] = told
    wanted = range(first, last + 1)
    if any(step not in found for step in wanted):
        return None
    return {side: sum(found[step][side] for step in wanted) for side in (CLIENTS, SERVER)}
