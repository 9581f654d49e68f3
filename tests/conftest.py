"""Fixtures for every part: the folder of real data sets, one torch thread, and runs of a fraction of a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedstill.client.app import app as client_app
from fedstill.common.packing import packed, unpacked
from fedstill.common.scenario import Scenario, dump, parse, to_toml
from fedstill.common.sources import override
from fedstill.server.folder import RunFolder, begin_folder
from fedstill.server.holdings import simulated
from fedstill.server.launch import build_teacher
from fedstill.server.rounds import Pulse, Run, play
from fedstill.server.state import RunState
from fedstill.simulations.engine import LocalGrid

SMALL = {
    "name": "small",
    "clients": {"count": 4},
    "rounds": {"count": 2, "backoff": 0},
    "training": {"epochs": 1, "batch-size": 16, "learning-rate": 0.02},
    "algorithm": {"name": "fedmd"},
    "tasks": {
        "wine": {
            "kind": "tabular",
            "source": "wine",
            "models": ["linear-softmax", "mlp-small"],
            "proxy": {"samples": 40},
        }
    },
}
"""Wines that scikit-learn ships, two architectures, three classes: a client's round takes 3 ms."""

Tamper = Callable[[Message, Context, ClientApp], Message]
"""What stands between the server and a client: it may ask the client, and answers as it likes."""


class Opened(ClientApp):
    """A ClientApp whose answers are plain records."""

    def __init__(self, inner: ClientApp) -> None:
        super().__init__()
        self._inner = inner

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self._inner(message, context)
        if reply.has_content():
            reply.content = unpacked(reply.content)
        return reply


class Tampered(ClientApp):
    """The ClientApp, with somebody between it and the server."""

    def __init__(self, tamper: Tamper, inner: ClientApp = client_app) -> None:
        super().__init__()
        self._tamper = tamper
        self._inner = Opened(inner)

    def __call__(self, message: Message, context: Context) -> Message:
        """Whoever stands between sees and writes plain records; the server gets them packed, as from anybody."""
        message.content = unpacked(message.content)
        reply = self._tamper(message, context, self._inner)
        if reply.has_content():
            reply.content = packed(reply.content)
        return reply


@dataclass
class Played:
    """A run that came to its end, or as far as it could.

    Attributes:
        folder: of the run.
        states: committed ones, in order.
        pulses: all of them.
    """

    folder: RunFolder
    states: list[RunState] = field(default_factory=list)
    pulses: list[Pulse] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.folder.records()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; a test that needs it is skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDSTILL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no folder of data sets: set FEDSTILL_DATA, or put it at ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and two of them on a busy core are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small() -> Callable[..., Scenario]:
    """A scenario of a fraction of a second, with some dotted keys changed."""

    def make(changes: Mapping[str, Any] = {}) -> Scenario:
        return parse(override(SMALL, changes))

    return make


@pytest.fixture(scope="session")
def tampered() -> Callable[[Tamper], ClientApp]:
    """The ClientApp, with somebody between it and the server."""
    return Tampered


@pytest.fixture
def play_small(tmp_path: Path, small: Callable[..., Scenario]) -> Callable[..., Played]:
    """Plays a small scenario on the local engine in this process; what it committed is in `Played` even if it fails.

    A run folder of that name is gone on with.
    """

    def run(
        changes: Mapping[str, Any] = {},
        *,
        tamper: Tamper | None = None,
        scenario: Scenario | None = None,
        grid_class: type[LocalGrid] = LocalGrid,
        clock: Callable[[], float] = time.monotonic,
        played: Played | None = None,
        name: str = "run",
        data_dir: Path | None = None,
    ) -> Played:
        one = scenario or small(changes)
        folder = begin_folder(tmp_path / name, one, data_dir=data_dir)
        found = played or Played(folder)
        found.folder = folder
        grid = grid_class(
            Tampered(tamper) if tamper else client_app,
            clients=one.clients.count,
            run_config={"toml": to_toml(dump(one)), "data-dir": str(data_dir or "")},
            node_config={"store": str(folder.clients)},
        )
        play(
            Run(
                scenario=one,
                grid=grid,
                tasks=simulated(one, data_dir),
                teacher=build_teacher(one.teacher),
                folder=folder,
                pulse=found.pulses.append,
                committed=found.states.append,
                clock=clock,
            ),
            folder.restore(),
        )
        return found

    return run
