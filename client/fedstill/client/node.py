"""A client as one message finds it: what it has, what may leave it, where its students and its ledger lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fedstill.client.guard import Guard, site_guard, usual_guard
from fedstill.client.holdings import Holdings, owned, simulated
from fedstill.client.ledger import Ledger
from fedstill.client.resources import within
from fedstill.client.site import VARIABLE as SITE_VARIABLE
from fedstill.client.site import Resources, Site, read_site
from fedstill.client.store import Store
from fedstill.common.errors import ConfigError, DataError, Reason, RefusalError
from fedstill.common.lock import only_process
from fedstill.common.logs import show_where_flower_does
from fedstill.common.scenario import Scenario, TaskPlan, single_task
from fedstill.common.sources import from_run_config
from fedstill.common.task import Task

log = logging.getLogger(__name__)

STORE_VARIABLE = "FEDSTILL_STORE"
"""Environment variable: the folder in which clients keep their students."""

DATA_VARIABLE = "FEDSTILL_DATA"
"""Environment variable: the folder of data sets."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A client.

    Attributes:
        holdings: what it has.
        guard: what may leave it.
        root: folder of everything that it keeps.
        durable: whether that has to survive a power cut.
        site: what its administrator decided; None for a client of a simulated run.
    """

    holdings: Holdings
    guard: Guard
    root: Path
    durable: bool
    site: Site | None

    @property
    def ledger(self) -> Ledger | None:
        """What it was asked and answered; a client of a simulated run keeps no account."""
        return Ledger(self.root / "ledger") if self.site is not None else None

    def store(self, run: str) -> Store:
        """Where its students of a run lie."""
        if self.site is not None:
            return Store(self.root / "runs" / run, durable=self.durable)
        return Store(self.root / run / self.holdings.name if self.durable else self.root, durable=self.durable)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else works in the store inside the block; a simulation has one process for each client anyway."""
        with only_process(self.root) if self.site is not None else nullcontext():
            yield


@contextmanager
def node_of(context: Context, *, task: Task | TaskPlan | None, model: str, guard: Guard | None) -> Iterator[Node]:
    """The client that a node is, within the resources that it may take.

    A node with a client.toml is what that file says; nothing of the run's configuration, which the server makes, has a
    say in it. Only a client of a simulated run takes its data from there.

    Raises:
        RefusalError: for a client.toml or data of a site that cannot be used, or if the work needs more than it may
            have.
        ConfigError, DataError: for a scenario or data that a client of a simulated run cannot use.
    """
    own = context.node_config.get("store")
    # The local engine names a folder inside the run's: it goes with the run. What it simulates need not survive a power
    # cut; what a site keeps has to, wherever it lies.
    if not is_site(context):
        with within(Resources()):
            holdings = _simulated(context, task, model)
            root = Path(str(own)) / holdings.name if own else default_store()
            yield Node(holdings, guard or usual_guard(), root, durable=not own, site=None)
        return
    with _told_here():
        site = read_site(Path(_site_file(context)))
    with within(site.resources):
        if not own:
            show_where_flower_does(site.log_level)
        with _told_here():
            holdings = owned(site)
        root = Path(str(own)) / site.name if own else Path(site.store)
        yield Node(holdings, site_guard(site.policy, guard), root, durable=True, site=site)


@contextmanager
def _told_here() -> Iterator[None]:
    """What is wrong with a site's file or data is told in the site's own log: a message may quote a patient."""
    try:
        yield
    except (ConfigError, DataError) as error:
        log.error("%s", error)
        raise RefusalError(
            "the site's client.toml or data cannot be used",
            "its own log says why",
            "let its administrator run fedstill doctor --site",
            reason=Reason.CLIENT_ERROR,
        ) from error


def is_site(context: Context) -> bool:
    """Whether a node holds data of its own, as its client.toml says."""
    return bool(_site_file(context))


def _site_file(context: Context) -> str:
    """The path of the node's client.toml; "" for a client of a simulated run."""
    named = context.node_config.get("site")
    if not named and "partition-id" not in context.node_config:
        named = os.environ.get(SITE_VARIABLE)
    return str(named or "")


def _simulated(context: Context, task: Task | TaskPlan | None, model: str) -> Holdings:
    number = context.node_config.get("partition-id")
    if not isinstance(number, int):
        raise ConfigError(
            f"partition-id={number!r}",
            "expected the client's number, or a site",
            'set partition-id=0, or site="/path/client.toml", in --node-config',
        )
    count = context.node_config.get("num-partitions", 0)
    scenario = _scenario(context, task, model, int(count))
    folder = context.run_config.get("data-dir") or os.environ.get(DATA_VARIABLE)
    return simulated(scenario, number, Path(str(folder)) if folder else None)


def _scenario(context: Context, task: Task | TaskPlan | None, model: str, count: int) -> Scenario:
    if task is None:
        return from_run_config(context.run_config)
    return single_task(task, model, clients=count, seed=int(context.run_config.get("seed") or 1))


def default_store() -> Path:
    """Where a client keeps its students unless its site or the local engine tells it."""
    root = os.environ.get(STORE_VARIABLE)
    return Path(root) if root else Path.home() / ".local" / "state" / "fedstill"
