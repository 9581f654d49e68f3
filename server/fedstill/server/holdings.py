"""What the server holds of each task: the public samples, and what it measures with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedstill.common.algorithm import feature_width, parts, reads_features
from fedstill.common.data.federation import federate
from fedstill.common.data.pack import read_pack
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, UnsupportedError
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
    return {
        name: _server_task(
            scenario,
            ServerTask(
                task=scenario.tasks[name].task,
                spec=share.spec,
                model=scenario.tasks[name].server_model,
                group=share.group,
                proxy=share.proxy,
                per_round=scenario.tasks[name].proxy.per_round,
                proxy_targets=share.proxy_targets if len(share.proxy_targets) else None,
                test=share.test,
                pooled=share.pooled,
                choose=scenario.tasks[name].proxy.choose,
            ),
        )
        for name, share in federation.tasks.items()
    }


def packed(scenario: Scenario, folder: Path) -> Mapping[str, ServerTask]:
    """The server's tasks in a run whose clients hold their own data: the public pack, and nothing else.

    Args:
        scenario: names method, rounds and teacher; of its tasks the models and what a round is about.
        folder: of the pack.

    Raises:
        DataError: if the pack is missing or broken.
        ConfigError, UnsupportedError: for a task that the pack does not have, a model that is not known or cannot read
            the task's inputs, or a method that needs all data in one place.
    """
    if scenario.algorithm.exchange == "data":
        raise UnsupportedError(
            f"algorithm '{scenario.algorithm.name}' with a public pack",
            "expected a method that leaves private data where they are",
            "choose another algorithm",
        )
    pack = read_pack(folder)
    found = {}
    for name, plan in scenario.tasks.items():
        public = pack.open(name)
        if public.task.name != plan.task.name:
            raise ConfigError(
                f"task '{name}' of kind '{plan.task.name}'", f"expected '{public.task.name}', the kind of {folder}"
            )
        if plan.proxy.per_round > len(public.proxy):
            raise ConfigError(
                f"tasks.{name}.proxy.per-round={plan.proxy.per_round}", f"expected at most {len(public.proxy)}"
            )
        own = ServerTask(
            task=public.task,
            spec=public.spec,
            model=plan.server_model,
            group=public.group,
            proxy=public.proxy,
            per_round=plan.proxy.per_round,
            proxy_targets=public.proxy_targets,
            test=public.test,
            pooled=None,
            choose=plan.proxy.choose,
        )
        found[name] = _server_task(scenario, own)
    return found


def _server_task(scenario: Scenario, task: ServerTask) -> ServerTask:
    """The task with the width of the features that a method reads; its models are tried before any client has to."""
    plan, method = scenario.tasks[task.spec.name], scenario.algorithm
    averaged = "features" in parts(method)
    features = averaged or method.exchange in LABEL_FREE or reads_features(method)
    # Every client would find out for itself, one by one.
    for model in dict.fromkeys(plan.models):
        check_model(model, task.spec, features=features)
    check_model(task.model, task.spec)
    return replace(task, features=feature_width(method, _widths(plan.models, task.spec)) if averaged else 0)


def spec_tables(tasks: Mapping[str, ServerTask]) -> dict[str, Any]:
    """For config.toml: task → what a model reads and gives, but for the label space, and the proxy set's digest.

    With it a model can be built and asked where the data is not.
    """
    return {
        name: {
            "output": own.spec.output,
            "modality": own.spec.modality,
            "input-shape": list(own.spec.input_shape),
            "vocabulary": own.spec.vocabulary,
            "positions": list(own.spec.positions),
            "tokenizer": own.spec.tokenizer,
            "proxy": own.proxy.digest,
        }
        for name, own in tasks.items()
    }


def spec_from_table(name: str, table: Mapping[str, Any], classes: Iterable[str]) -> TaskSpec:
    """A task from its table among `spec_tables`, over a label space."""
    return TaskSpec(
        name=name,
        output=table["output"],
        modality=table["modality"],
        classes=tuple(classes),
        input_shape=tuple(table["input-shape"]),
        vocabulary=table["vocabulary"],
        positions=tuple(table["positions"]),
        tokenizer=table["tokenizer"],
    )


def _widths(models: Iterable[str], spec: TaskSpec) -> list[int]:
    """How many features the last layer of each model reads."""
    return [embedding_width(model, spec) for model in dict.fromkeys(models)]
