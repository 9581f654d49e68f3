"""Distillation as a Flower strategy, for people who write their own ServerApp.

    strategy = Distillation(algorithm=FedMD(temperature=2.0), task=ImageTask(), model="cnn-small", clients=4)
    result = strategy.start(grid=grid, num_rounds=5)

`start()` hands over to the round engine: Flower's own loop knows neither quorum nor deadline, does not commit rounds,
and ends the whole run when one reply is odd.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedstill.common.algorithm import Algorithm
from fedstill.common.codec import Codec
from fedstill.common.errors import UnsupportedError
from fedstill.common.scenario import Clients, Plugin, Scenario, TaskPlan, codec_from, dump, single_task, to_toml
from fedstill.common.task import Task
from fedstill.server.folder import RunFolder, begin_folder
from fedstill.server.launch import launch
from fedstill.server.state import RunState
from fedstill.server.summary import mean, number

log = logging.getLogger(__name__)


class Distillation(Strategy):
    """Federated distillation with a method and a task of your choice.

    Args:
        algorithm: the method with its hyper-parameters; None for `fedstill`.
        task: what all clients learn; a `TaskPlan` where proxy set, partition or teacher model matter.
        model: architecture of the students; "" for the plan's own.
        clients: how many there are, or `Clients` where cohort or quorum matter.
        seed: of everything; the ClientApp needs the same.
        teacher: name of the server's part, "consensus", "model" or "pretrained", or a `Plugin` with its options.
        codec: how arrays travel, a name ("fp16") or a codec with its options.
        run_dir: the run folder; a folder that holds this run already is gone on with. None: a new one below runs/.
        data_dir: folder of data sets.
        others: further attributes of `Scenario`, such as `training`.

    Raises:
        ConfigError: for a value outside its range, or a method that cannot do the task's kind of output.
    """

    def __init__(
        self,
        *,
        algorithm: Algorithm | None = None,
        task: Task | TaskPlan,
        model: str = "",
        clients: int | Clients,
        seed: int = 1,
        teacher: str | Plugin = "consensus",
        codec: str | Codec = "raw",
        run_dir: Path | None = None,
        data_dir: Path | None = None,
        **others: Any,
    ) -> None:
        plugin = Plugin(teacher) if isinstance(teacher, str) else teacher
        packer = codec_from(codec) if isinstance(codec, str) else codec
        self._scenario = single_task(
            task, model, clients=clients, seed=seed, algorithm=algorithm, teacher=plugin, codec=packer, **others
        )
        self._run_dir = run_dir
        self._data_dir = data_dir
        self.folder: RunFolder | None = None

    @property
    def scenario(self) -> Scenario:
        """The run that `start` would play."""
        return self._scenario

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Play the run.

        Args:
            grid: Flower's way to the clients.
            initial_arrays: not taken: students start from their own seeds, and a trained teacher is
                `teacher=Plugin("pretrained", {"path": …})`.
            num_rounds: rounds to play.
            timeout: seconds that a round waits for its clients.
            train_config, evaluate_config: not taken: settings are attributes of algorithm and scenario.
            evaluate_fn: called after each round with the server model's weights.

        Returns:
            Flower's `Result`: weights of the server's model, mean measures of the clients and those of the server by
            round. Everything else is in the run folder, `self.folder`.

        Raises:
            UnsupportedError: for an argument that has no meaning here.
            FedstillError: whatever keeps the run from its end; it can be gone on with in the same `run_dir`.
        """
        given = {"initial_arrays": initial_arrays, "train_config": train_config, "evaluate_config": evaluate_config}
        for name, value in given.items():
            if value is not None:
                raise UnsupportedError(
                    f"Distillation.start({name}=…)",
                    "expected none",
                    "see the attributes of Distillation and its algorithm",
                )
        rounds = replace(self._scenario.rounds, count=num_rounds, deadline=float(timeout))
        scenario = replace(self._scenario, rounds=rounds)
        self.folder = begin_folder(self._run_dir, scenario, data_dir=self._data_dir)
        self.summary()
        result = Result()

        def committed(state: RunState) -> None:
            _add(result, state, evaluate_fn)

        launch(scenario, grid, self.folder, data_dir=self._data_dir, committed=committed)
        return result

    def summary(self) -> None:
        """Log what will be played."""
        log.info("%s", to_toml(dump(self._scenario)))

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> NoReturn:
        """Not used by `start`."""
        _refuse()

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> NoReturn:
        """Not used by `start`."""
        _refuse()

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> NoReturn:
        """Not used by `start`."""
        _refuse()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> NoReturn:
        """Not used by `start`."""
        _refuse()


def _add(result: Result, state: RunState, evaluate: Callable[[int, ArrayRecord], MetricRecord | None] | None) -> None:
    """Add a committed step to Flower's result; of several tasks, a measure bears the task's name before its own."""
    several = len(state.tasks) > 1
    clients: dict[str, float] = {}
    server: dict[str, float] = {}
    weights: dict[str, NDArray[np.generic]] = {}
    for task, part in state.record["tasks"].items():
        prefix = f"{task}." if several else ""
        measures = list(part["clients"].values())
        for key in dict.fromkeys(key for one in measures for key in one):
            clients |= _numbers(prefix + key, mean(number(one.get(key)) for one in measures))
        for key, value in part["server"].items():
            server |= _numbers(prefix + key, number(value))
    for task, held in state.tasks.items():
        weights |= {(f"{task}." if several else "") + key: value.numpy() for key, value in held.model.items()}
    result.arrays = ArrayRecord({key: Array(value) for key, value in weights.items()})
    if clients:
        result.train_metrics_clientapp[state.step] = MetricRecord(dict(clients))
    if evaluate is not None:
        found = evaluate(state.step, result.arrays)
        server |= {key: float(value) for key, value in (found or {}).items() if not isinstance(value, list)}
    if server:
        result.evaluate_metrics_serverapp[state.step] = MetricRecord(dict(server))


def _numbers(key: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {key: value}


def _refuse() -> NoReturn:
    raise UnsupportedError(
        "Distillation outside start()", "its rounds are played by the round engine", "call strategy.start(grid=grid)"
    )
