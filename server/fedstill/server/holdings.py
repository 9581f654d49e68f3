"""What the server holds of each task: the public samples, and what it measures with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedstill.common.algorithm import feature_width, parts, reads_features
from fedstill.common.data.federation import federate
from fedstill.common.data.proxy import ProxySet
from fedstill.common.knowledge import LABEL_FREE
from fedstill.common.models import check_model, embedding_width
from fedstill.common.scenario import Scenario
from fedstill.common.task import Examples, Task, TaskSpec


@dataclass(frozen=True, slots=True, eq=False)
class ServerTask:
    """One task on the server.

    Attributes:
        task: its kind.
        spec: over the whole label space.
        model: architecture of the server's model, unless the method needs the clients'.
        group: whose proxy samples they are, as in `TaskShare`.
        proxy: public samples.
        per_round: how many of them a round is about; 0 for all.
        proxy_targets: their labels, for measurement only; None if nobody knows them.
        test: samples to measure with, or None.
        pooled: all private data in one place; None outside a simulation.
        features: width of the features in the clients' prototypes or embeddings; 0 for none.
        choose: the query strategy that chooses the samples of a round.
    """

    task: Task
    spec: TaskSpec
    model: str
    group: str
    proxy: ProxySet
    per_round: int
    proxy_targets: Tensor | None
    test: Examples | None
    pooled: Callable[[], Examples] | None
    features: int = 0
    choose: str = "random"


def simulated(scenario: Scenario, data_dir: Path | None) -> Mapping[str, ServerTask]:
    """The server's tasks in a simulated run.

    Raises:
        DataError: if data is missing or broken.
        ConfigError, UnsupportedError: for a model that is not known, or cannot read the task's inputs.
    """
    federation = federate(scenario, data_dir)
    averaged = "features" in parts(scenario.algorithm)
    features = averaged or scenario.algorithm.exchange in LABEL_FREE or reads_features(scenario.algorithm)
    for name, share in federation.tasks.items():
        # Every client would find out for itself, one by one.
        for model in dict.fromkeys(scenario.tasks[name].models):
            check_model(model, share.spec, features=features)
        check_model(scenario.tasks[name].server_model, share.spec)
    return {
        name: ServerTask(
            task=scenario.tasks[name].task,
            spec=share.spec,
            model=scenario.tasks[name].server_model,
            group=share.group,
            proxy=share.proxy,
            per_round=scenario.tasks[name].proxy.per_round,
            proxy_targets=share.proxy_targets if len(share.proxy_targets) else None,
            test=share.test,
            pooled=share.pooled,
            features=feature_width(scenario.algorithm, _widths(scenario.tasks[name].models, share.spec))
            if averaged
            else 0,
            choose=scenario.tasks[name].proxy.choose,
        )
        for name, share in federation.tasks.items()
    }


def _widths(models: Iterable[str], spec: TaskSpec) -> list[int]:
    """How many features the last layer of each model reads."""
    return [embedding_width(model, spec) for model in dict.fromkeys(models)]
