"""The Flower ClientApp: `query.describe`, `train.alone`, `train.round`, `train.finish`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedstill.client.guard import Guard, usual_guard
from fedstill.client.holdings import Holdings, simulated
from fedstill.client.store import Store
from fedstill.client.work import Worker, recall
from fedstill.common import records
from fedstill.common.algorithm import Algorithm
from fedstill.common.errors import ConfigError, KnowledgeError, Reason
from fedstill.common.messages import Answer, Order
from fedstill.common.packing import packed
from fedstill.common.scenario import Scenario, TaskPlan, single_task
from fedstill.common.sources import from_run_config
from fedstill.common.task import Task

STORE_VARIABLE = "FEDSTILL_STORE"
"""Environment variable: the folder in which clients keep their students."""

DATA_VARIABLE = "FEDSTILL_DATA"
"""Environment variable: the folder of data sets."""


def client_app(
    *,
    task: Task | TaskPlan | None = None,
    model: str = "",
    algorithms: Sequence[type[Algorithm]] = (),
    guard: Guard | None = None,
) -> ClientApp:
    """A ClientApp that takes part in distillation.

    Args:
        task: what the client learns; None takes the tasks of the run's scenario.
        model: architecture of its student, when `task` is given.
        algorithms: methods of your own that are not installed as plug-ins.
        guard: what may leave the client; None for the usual, to which FEDSTILL_RELEASE may add.
    """
    app = ClientApp()
    own = {kind.name: kind for kind in algorithms}

    def worker(context: Context, run: str) -> Worker:
        # One thread a process: two on a busy core are ten times slower, and sums would depend on their number.
        torch.set_num_threads(1)
        holdings = _holdings(context, task, model)
        return Worker(holdings, _store(context, run, holdings.name), guard or usual_guard(), own)

    def work(message: Message, context: Context, do: Callable[[Worker, Order], Answer]) -> Message:
        records.check_protocol(message.content)
        held = _holdings(context, task, model)
        try:
            order = records.read_order(
                message.content, lambda run, version, name: recall(_store(context, run, held.name), version, name)
            )
        except KnowledgeError as error:
            if error.reason is not Reason.CONTEXT:
                raise
            return Message(records.write_plea(), reply_to=message)
        one = worker(context, order.run)
        content = packed(records.write_answer(do(one, order), order))
        # Only a pointer: Flower loses a large state silently, and any state with the process.
        context.state["student"] = ConfigRecord(
            {"run": order.run, "version": order.round, "digest": one.store.digest(order.round)}
        )
        return Message(content, reply_to=message)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        records.check_protocol(message.content)
        content = packed(records.write_description(worker(context, "").describe()))
        return Message(content, reply_to=message)

    @app.train("alone")
    def alone(message: Message, context: Context) -> Message:
        return work(message, context, Worker.alone)

    @app.train("round")
    def play(message: Message, context: Context) -> Message:
        return work(message, context, Worker.round)

    @app.train("finish")
    def finish(message: Message, context: Context) -> Message:
        return work(message, context, Worker.finish)

    return app


def _holdings(context: Context, task: Task | TaskPlan | None, model: str) -> Holdings:
    number = context.node_config.get("partition-id")
    if not isinstance(number, int):
        raise ConfigError(f"partition-id={number!r}", "expected the client's number", "set it in --node-config")
    count = context.node_config.get("num-partitions", 0)
    scenario = _scenario(context, task, model, int(count))
    folder = context.run_config.get("data-dir") or os.environ.get(DATA_VARIABLE)
    return simulated(scenario, number, Path(str(folder)) if folder else None)


def _scenario(context: Context, task: Task | TaskPlan | None, model: str, count: int) -> Scenario:
    if task is None:
        return from_run_config(context.run_config)
    return single_task(task, model, clients=count, seed=int(context.run_config.get("seed") or 1))


def _store(context: Context, run: str, name: str) -> Store:
    own = context.node_config.get("store")
    if own:
        # The local engine names a folder inside the run's: it goes with the run, and need not survive a power cut.
        return Store(Path(str(own)) / name, durable=False)
    return Store(default_store() / run / name)


def default_store() -> Path:
    """Where a client keeps its students unless the local engine tells it."""
    root = os.environ.get(STORE_VARIABLE)
    return Path(root) if root else Path.home() / ".local" / "state" / "fedstill"


app = client_app()
