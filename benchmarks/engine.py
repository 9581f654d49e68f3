"""What the local engine costs: rounds in which the clients do nothing but send 200 kB back.

    python benchmarks/engine.py --data-dir DIR --ray

Two figures: the grid alone (messages out and in, with Flower's serialisation both ways), and the whole round engine on
top (orders, admission of 5,000 × 10 soft labels, their mean). With --ray the same ClientApp in Flower's own simulation
runtime, asked in the same way, in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from rich.console import Console
from rich.table import Table

from fedstill.common import __version__, introduction, records
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import Answer, Description, TaskAnswer, TaskDescription
from fedstill.common.scenario import parse
from fedstill.server.exchange import ask
from fedstill.server.folder import new_folder
from fedstill.server.holdings import simulated
from fedstill.server.launch import build_teacher
from fedstill.server.rounds import Run, play
from fedstill.simulations.engine import LocalGrid

SAMPLES, CLASSES = 5_000, 10  # × 4 bytes = 200 kB


def echo_app() -> ClientApp:
    """A ClientApp that sends back what it got."""
    app = ClientApp()

    @app.train("round")
    def play_round(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


def no_op_app(digest: str) -> ClientApp:
    """A ClientApp with ready answers: 5,000 soft labels over ten classes."""
    app = ClientApp()
    classes = tuple(str(label) for label in range(CLASSES))
    values = np.full((SAMPLES, CLASSES), 1 / CLASSES, dtype=np.float32)
    ready = SoftLabels("categorical", classes, np.arange(SAMPLES, dtype=np.int64), values)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        task = TaskDescription("categorical", "image", classes, (1, 28, 28), "linear-softmax", 7850, 100, digest)
        name = f"client-{context.node_config['partition-id']:05}"
        return Message(
            introduction.write_description(Description(name, __version__, {"fashion": task})), reply_to=message
        )

    def answer(message: Message, context: Context, told: SoftLabels | None) -> Message:
        order = records.read_order(message.content)
        name = f"client-{context.node_config['partition-id']:05}"
        tasks = {"fashion": TaskAnswer(digest, 100, told)}
        reply = Answer(name, order.run, order.round, order.attempt, order.version, tasks)
        return Message(records.write_answer(reply, order), reply_to=message)

    @app.train("round")
    def play_round(message: Message, context: Context) -> Message:
        return answer(message, context, ready)

    @app.train("finish")
    def finish(message: Message, context: Context) -> Message:
        return answer(message, context, None)

    return app


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def grid_rounds(clients: int, rounds: int) -> list[float]:
    """Seconds of each round of the grid alone."""
    once = echo_round(LocalGrid(echo_app(), clients=clients), clients)
    return [timed(once) for _ in range(rounds)]


def echo_round(grid: Grid, clients: int) -> Callable[[], None]:
    """A round: ask every client, and take its answer."""
    nodes = {str(node): node for node in grid.get_node_ids()}
    payload = Array(np.random.default_rng(1).random((SAMPLES, CLASSES), dtype=np.float32))
    questions = dict.fromkeys(nodes, RecordDict({"payload": ArrayRecord({"values": payload})}))

    def once() -> None:
        replies = list(ask(grid, questions, nodes, kind="train.round", group="", deadline=300))
        if len(replies) != clients or any(reply.message.has_error() for reply in replies):
            raise RuntimeError(f"{len(replies)} of {clients} replies")

    return once


def ray_rounds(clients: int, rounds: int) -> list[float]:
    """Seconds of each round but the first in Flower's simulation runtime."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    taken: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < clients:
            time.sleep(0.1)
        once = echo_round(grid, clients)
        taken.extend(timed(once) for _ in range(rounds + 1))

    run_simulation(server, echo_app(), num_supernodes=clients, backend_config={"client_resources": {"num_cpus": 1}})
    return taken[1:]  # the first one starts the actors


def engine_rounds(clients: int, rounds: int, data_dir: Path | None) -> list[float]:
    """Seconds of each round of the whole engine."""
    scenario = parse(
        {
            "clients": {"count": clients},
            "rounds": {"count": rounds},
            "alone": False,
            "algorithm": {"name": "fedmd"},
            "tasks": {
                "fashion": {
                    "kind": "image",
                    "source": "fashion_mnist",
                    "models": ["linear-softmax"],
                    "proxy": {"samples": SAMPLES},
                    "partition": {"minimum": 1},
                    "test": 1,
                }
            },
        }
    )
    tasks = simulated(scenario, data_dir)
    with tempfile.TemporaryDirectory() as place:
        folder = new_folder(Path(place) / "run", scenario, data_dir=data_dir)
        grid = LocalGrid(no_op_app(tasks["fashion"].proxy.digest), clients=clients)
        play(Run(scenario=scenario, grid=grid, tasks=tasks, teacher=build_teacher(scenario.teacher), folder=folder))
        return [record["seconds"] for record in folder.records() if record["kind"] == "round"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--data-dir", type=Path, help="with fashion_mnist: measures the whole engine too")
    parser.add_argument("--ray", action="store_true", help="measure Flower's simulation runtime too (extra ray)")
    options = parser.parse_args()
    table = Table(title="A round in which clients do nothing but send 200 kB back", title_justify="left")
    for heading in ("clients", "grid, ms", "a client, ms", "whole engine, ms", "Flower with Ray, ms"):
        table.add_column(heading, justify="right")
    for clients in options.clients:
        rounds = 21 if clients <= 100 else 5
        grid = statistics.median(grid_rounds(clients, rounds))
        engine = statistics.median(engine_rounds(clients, 5, options.data_dir)) if options.data_dir else None
        ray = statistics.median(ray_rounds(clients, 3)) if options.ray else None
        table.add_row(
            f"{clients:,}",
            f"{1000 * grid:.1f}",
            f"{1000 * grid / clients:.2f}",
            *("" if seconds is None else f"{1000 * seconds:,.0f}" for seconds in (engine, ray)),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
