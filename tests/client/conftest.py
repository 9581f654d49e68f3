"""A site with files of its own, and orders that a server might send it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedstill.client.app import app
from fedstill.client.holdings import owned
from fedstill.client.site import VARIABLE, Site, read_site
from fedstill.common import __version__, introduction, records, wire
from fedstill.common.codecs.raw import Raw
from fedstill.common.data.pack import Pack
from fedstill.common.learning import Training
from fedstill.common.messages import DESCRIBE, ROUND, Answer, Description, Method, Order, Question, Refusal, TaskOrder
from fedstill.common.scenario import Scenario, to_toml
from fedstill.simulations.split import split

METHOD = Method("fedmd", {}, Training(epochs=1, batch_size=16, learning_rate=0.02), Raw())


@dataclass
class Party:
    """A site, as its SuperNode starts it.

    Attributes:
        folder: of client.toml.
        pack: the public pack.
        run_config: what the server sends along.
    """

    folder: Path
    pack: Pack
    run_config: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "client.toml"

    @property
    def site(self) -> Site:
        return read_site(self.path)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def change(self, **tables: Any) -> None:
        """Set keys of client.toml; a mapping is added to the table of that name."""
        table = tomllib.loads(self.path.read_text())
        for name, value in tables.items():
            key = name.replace("_", "-")
            table[key] = {**table.get(key, {}), **value} if isinstance(value, Mapping) else value
        self.path.write_text(to_toml(table))

    def order(self, number: int, *, version: int = -1, run: str = "run", **changes: Any) -> Order:
        """A round's order, from the student of the round before unless another version is named."""
        held = owned(self.site).tasks
        tasks = {name: TaskOrder(one.proxy.digest, np.arange(len(one.proxy))) for name, one in held.items()}
        plain = Order(run, number, 9, 1, 1, number - 1 if version < 0 else version, METHOD, tasks)
        return replace(plain, **changes)

    def message(self, kind: str, content: RecordDict) -> Message:
        made = Message(content, 2, kind)
        made.metadata.__dict__["_message_id"] = "question"
        return made

    def context(self) -> Context:
        node: dict[str, str | int | float | bool] = {"site": str(self.path), "partition-id": 0, "num-partitions": 1}
        return Context(1, 7, node, RecordDict(), dict(self.run_config))

    def send(self, order: Order, kind: str = ROUND) -> RecordDict:
        """The reply's content."""
        return app(self.message(kind, records.write_order(order)), self.context()).content

    def answer(self, order: Order, kind: str = ROUND) -> Answer:
        content = self.send(order, kind)
        told = introduction.read_refusal(content)
        assert told is None, told
        return records.read_answer(wire.opened(content), order)

    def refusal(self, order: Order, kind: str = ROUND) -> Refusal:
        told = introduction.read_refusal(self.send(order, kind))
        assert told is not None
        return told

    def describe(self, question: Question | None = None) -> Description | Refusal:
        asked = introduction.write_question(question or Question(__version__, {}))
        content = app(self.message(DESCRIBE, asked), self.context()).content
        return introduction.read_refusal(content) or introduction.read_description(content)

    def students(self, run: str = "run") -> list[str]:
        """The versions in the store."""
        return sorted(path.name.rsplit("-", 1)[0] for path in (self.store / "runs" / run).glob("student-*"))


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    monkeypatch.delenv(VARIABLE, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def party(tmp_path: Path, small: Callable[..., Scenario]) -> Callable[..., Party]:
    """Makes a federation's files and gives one of its sites."""

    def make(changes: Mapping[str, Any] = {}, *, site: str = "client-1", folder: str = "out") -> Party:
        dealt = split(small(changes), tmp_path / folder, data_dir=None)
        return Party(dealt.sites[site], dealt.pack)

    return make
