from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Result

from fedstill.client.app import client_app
from fedstill.common.algorithm import Algorithm
from fedstill.common.algorithms.fedavg import FedAvg
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.algorithms.local import Local
from fedstill.common.codecs.topk import TopK
from fedstill.common.errors import ConfigError, RunFolderError, UnsupportedError
from fedstill.common.learning import Training
from fedstill.common.scenario import ProxyPlan, TaskPlan
from fedstill.common.tasks.tabular import TabularTask
from fedstill.server.strategy import Distillation
from fedstill.simulations.engine import LocalGrid

PLAN = TaskPlan(task=TabularTask(source="wine"), models=("linear-softmax",), proxy=ProxyPlan(samples=40))


class Harder(FedMD):
    """A method of one's own: it is nowhere installed."""

    name = "harder"


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Result]:
    def run(
        strategy: Distillation, *, rounds: int = 2, algorithms: tuple[type[Algorithm], ...] = (), **others: Any
    ) -> Result:
        grid = LocalGrid(
            client_app(task=PLAN, model="mlp-small", algorithms=algorithms),
            clients=3,
            run_config={"seed": 1},
            node_config={"store": str(tmp_path / "students")},
        )
        return strategy.start(grid=grid, num_rounds=rounds, **others)

    return run


def strategy(tmp_path: Path, algorithm: Algorithm, **others: Any) -> Distillation:
    return Distillation(
        algorithm=algorithm,
        task=PLAN,
        model="mlp-small",
        clients=3,
        training=Training(epochs=1, batch_size=16, learning_rate=0.02),
        run_dir=tmp_path / "run",
        **others,
    )


def test_a_run_gives_flowers_result(tmp_path: Path, start: Callable[..., Result]) -> None:
    plays = strategy(tmp_path, FedMD(temperature=2.0), teacher="model")

    result = start(plays)

    assert plays.folder is not None
    records = plays.folder.records()
    assert [record["kind"] for record in records] == ["alone", "round", "round", "finish"]
    assert list(result.train_metrics_clientapp) == [0, 1, 2, 3]
    scores = [measures["trained.accuracy"] for measures in records[2]["tasks"]["tabular"]["clients"].values()]
    assert result.train_metrics_clientapp[2]["trained.accuracy"] == pytest.approx(sum(scores) / 3)
    server = records[2]["tasks"]["tabular"]["server"]
    assert result.evaluate_metrics_serverapp[2]["accuracy"] == server["accuracy"]
    assert result.evaluate_metrics_serverapp[2]["consensus.accuracy"] == server["consensus.accuracy"]
    assert {name: array.shape for name, array in result.arrays.items()} == {
        name: tuple(value.shape)
        for name, value in plays.folder.restore().tasks["tabular"].model.items()  # type: ignore[union-attr]
    }


def test_the_servers_model_is_evaluated_by_the_user(tmp_path: Path, start: Callable[..., Result]) -> None:
    seen: list[tuple[int, float]] = []

    def evaluate(step: int, arrays: ArrayRecord) -> MetricRecord:
        norm = float(sum(np.abs(array.numpy()).sum() for array in arrays.values()))
        seen.append((step, norm))
        return MetricRecord({"norm": norm})

    result = start(strategy(tmp_path, FedAvg()), evaluate_fn=evaluate)

    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert seen[1][1] != seen[0][1]
    assert seen[3][1] == seen[2][1]
    assert {step: record["norm"] for step, record in result.evaluate_metrics_serverapp.items()} == dict(seen)


def test_a_method_of_ones_own(tmp_path: Path, start: Callable[..., Result]) -> None:
    result = start(strategy(tmp_path, Harder()), algorithms=(Harder,))

    assert "distilled.accuracy" in result.train_metrics_clientapp[2]


def test_the_same_folder_is_gone_on_with(tmp_path: Path, start: Callable[..., Result]) -> None:
    start(strategy(tmp_path, Local()))

    again = start(strategy(tmp_path, Local()))

    assert again.train_metrics_clientapp == {}
    with pytest.raises(RunFolderError, match=r"belongs to another scenario: rounds.count: 2 / 3"):
        start(strategy(tmp_path, Local()), rounds=3)
    with pytest.raises(RunFolderError, match=r"algorithm.name: local / fedmd"):
        start(strategy(tmp_path, FedMD()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("initial_arrays", ArrayRecord()), ("train_config", ConfigRecord()), ("evaluate_config", ConfigRecord())],
)
def test_arguments_without_a_meaning_are_refused(
    tmp_path: Path, start: Callable[..., Result], name: str, value: object
) -> None:
    with pytest.raises(UnsupportedError, match=rf"Distillation.start\({name}=…\): expected none"):
        start(strategy(tmp_path, Local()), **{name: value})
    assert not (tmp_path / "run").exists()


def test_flowers_own_loop_is_refused(tmp_path: Path) -> None:
    plays = strategy(tmp_path, Local())
    grid = LocalGrid("fedstill.client.app:app", clients=1)

    with pytest.raises(UnsupportedError, match=r"call strategy\.start"):
        plays.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    with pytest.raises(UnsupportedError, match=r"call strategy\.start"):
        plays.aggregate_train(1, [])
    with pytest.raises(UnsupportedError, match=r"call strategy\.start"):
        plays.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)
    with pytest.raises(UnsupportedError, match=r"call strategy\.start"):
        plays.aggregate_evaluate(1, [])


def test_a_scenario_that_makes_no_sense_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clients_count=0"):
        Distillation(algorithm=Local(), task=PLAN, clients=0)
    with pytest.raises(ConfigError, match="codec 'zip'"):
        strategy(tmp_path, Local(), codec="zip")


def test_a_codec_by_name_or_with_options(tmp_path: Path) -> None:
    assert strategy(tmp_path, Local(), codec="topk").scenario.codec == TopK(kept=16)
    assert strategy(tmp_path, Local(), codec=TopK(kept=4)).scenario.codec == TopK(kept=4)
