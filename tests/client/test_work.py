from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from fedstill.client.guard import Guard
from fedstill.client.holdings import simulated
from fedstill.client.store import Store
from fedstill.client.work import Worker
from fedstill.common import __version__
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.codecs.raw import Raw
from fedstill.common.errors import ConfigError, DataError, MismatchError, RefusalError
from fedstill.common.knowledge import Knowledge, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Answer, Method, Order, TaskOrder
from fedstill.common.models import build_model, parameter_count
from fedstill.common.scenario import Scenario
from fedstill.common.sides import Client

Small = Callable[..., Scenario]
Make = Callable[..., Worker]

CLASSES = ("class_0", "class_1", "class_2")


@pytest.fixture
def make(small: Small, tmp_path: Path) -> Make:
    def worker(number: int = 1, changes: Mapping[str, Any] = {}, **parts: Any) -> Worker:
        holdings = simulated(small(changes), number, None)
        own: dict[str, Any] = {"guard": Guard(), "algorithms": {}, **parts}
        return Worker(holdings, Store(tmp_path / "students" / holdings.name, durable=False), **own)

    return worker


def order(worker: Worker, number: int, *, version: int = 0, told: Knowledge | None = None, **method: Any) -> Order:
    plan = Method(
        **{
            "algorithm": "fedmd",
            "options": {},
            "training": Training(epochs=1, batch_size=16, learning_rate=0.02),
            "codec": Raw(),
            **method,
        }
    )
    tasks = {
        name: TaskOrder(held.proxy.digest, np.arange(len(held.proxy)), told)
        for name, held in worker.holdings.tasks.items()
    }
    return Order("run", number, rounds=3, attempt=1, seed=1, version=version, method=plan, tasks=tasks)


def certain(label: int, samples: int = 40) -> SoftLabels:
    values = np.zeros((samples, 3), dtype=np.float32)
    values[:, label] = 1
    return SoftLabels("categorical", CLASSES, np.arange(samples), values)


def soft(answer: Answer) -> SoftLabels:
    knowledge = answer.tasks["wine"].knowledge
    assert isinstance(knowledge, SoftLabels)
    return knowledge


def test_a_client_describes_itself(make: Make) -> None:
    worker = make()

    told = worker.describe()

    holding = worker.holdings.tasks["wine"]
    assert (told.client, told.software) == ("client-1", __version__)
    assert told.tasks["wine"].model == "mlp-small"
    assert told.tasks["wine"].parameters == parameter_count(build_model("mlp-small", holding.spec, seed=3))
    assert told.tasks["wine"].examples == len(holding.data.private) == 21
    assert told.tasks["wine"].proxy_digest == holding.proxy.digest
    assert told.tasks["wine"].input_shape == (13,)
    assert told.tasks["wine"].classes == CLASSES


def test_a_round_trains_answers_and_keeps_the_student(make: Make) -> None:
    worker = make()

    answer = worker.round(order(worker, 1))

    assert (answer.client, answer.run, answer.round, answer.attempt, answer.version) == ("client-1", "run", 1, 1, 0)
    assert soft(answer).values.shape == (40, 3)
    assert answer.tasks["wine"].examples == 21
    assert {key.split(".")[0] for key in answer.tasks["wine"].metrics} == {"trained"}
    version, tensors = worker.store.load(1)
    assert version == 1
    model = build_model("mlp-small", worker.holdings.tasks["wine"].spec, seed=0)
    model.load_state_dict({name.removeprefix("wine.model."): value for name, value in tensors.items()})
    with torch.no_grad():
        expected = torch.softmax(model(worker.holdings.tasks["wine"].proxy.inputs), -1)
    np.testing.assert_allclose(soft(answer).values, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_next_round_begins_where_this_one_ended(make: Make) -> None:
    worker = make()
    worker.round(order(worker, 1))

    second = worker.round(order(worker, 2, version=1, told=certain(0)))

    assert second.version == 1
    assert {key.split(".")[0] for key in second.tasks["wine"].metrics} == {"distilled", "trained"}


def test_a_round_that_is_played_again_gives_the_same(make: Make) -> None:
    worker = make()
    worker.round(order(worker, 1))
    first = worker.round(order(worker, 2, version=1, told=certain(0)))
    worker.round(order(worker, 3, version=2, told=certain(1)))

    again = worker.round(replace(order(worker, 2, version=1, told=certain(0)), attempt=2))

    np.testing.assert_array_equal(soft(first).values, soft(again).values)
    assert first.tasks["wine"].metrics == again.tasks["wine"].metrics
    assert again.attempt == 2
    assert list(worker.store.versions()) == [1, 2]


def test_a_lost_student_is_owned_up_to(make: Make) -> None:
    worker = make()

    answer = worker.round(order(worker, 5, version=4, told=certain(0)))

    assert answer.version == 0
    assert list(worker.store.versions()) == [5]


def test_what_is_told_changes_the_student(make: Make) -> None:
    taught = {}
    for label in (0, 2):
        worker = make()
        answer = worker.finish(order(worker, 4, told=certain(label), options={"digest-epochs": 30}))
        rates = answer.tasks["wine"].metrics["final.class-accuracy"]
        assert isinstance(rates, list)
        taught[label] = rates
        assert answer.tasks["wine"].knowledge is None

    assert taught == {0: [1.0, 0.0, 0.0], 2: [0.0, 0.0, 1.0]}


def test_alone_is_the_floor_and_leaves_nothing_behind(make: Make) -> None:
    worker = make()

    answer = worker.alone(order(worker, 0))

    assert answer.tasks["wine"].knowledge is None
    assert worker.store.versions() == {}
    version = 0
    for number in (1, 2, 3):
        last = worker.round(order(worker, number, version=version, algorithm="local"))
        version = number
    floor, local = answer.tasks["wine"].metrics, last.tasks["wine"].metrics
    assert {key.removeprefix("alone."): value for key, value in floor.items()} == {
        key.removeprefix("trained."): value for key, value in local.items()
    }


def test_clients_differ_and_seeds_matter(make: Make) -> None:
    first = make(1).round(order(make(1), 1))
    other_client = make(3).round(order(make(3), 1))
    other_seed = make(1).round(replace(order(make(1), 1), seed=2))

    assert not np.array_equal(soft(first).values, soft(other_client).values)
    assert not np.array_equal(soft(first).values, soft(other_seed).values)


def test_measures_are_those_of_the_common_and_the_own_test_samples(make: Make) -> None:
    worker = make(0, {"tasks.wine.holdout": 0.0})

    metrics = worker.round(order(worker, 1)).tasks["wine"].metrics

    assert set(metrics) == {"trained.accuracy", "trained.macro-f1", "trained.auc", "trained.class-accuracy"}
    own = make(0).round(order(make(0), 1)).tasks["wine"].metrics
    assert set(own) - set(metrics) == {"trained.own-accuracy", "trained.own-macro-f1", "trained.own-auc"}


@dataclass(frozen=True, slots=True)
class Counting(FedMD):
    """A method of one's own that keeps a number between rounds."""

    name: ClassVar[str] = "counting"

    def local(self, client: Client) -> SoftLabels:
        client.memory["rounds"] = client.memory.get("rounds", torch.zeros(())) + 1
        return FedMD.local(self, client)


def test_a_method_of_ones_own_keeps_its_memory(make: Make) -> None:
    worker = make(algorithms={"counting": Counting})
    worker.round(order(worker, 1, algorithm="counting"))
    worker.round(order(worker, 2, version=1, algorithm="counting"))
    worker.round(order(worker, 2, version=1, algorithm="counting"))  # played again: counted once

    _, tensors = worker.store.load(2)

    assert tensors["wine.memory.rounds"] == 2
    assert tensors["wine.memory.rounds"].shape == ()


def test_a_foreign_order_is_refused_before_any_work(make: Make) -> None:
    worker = make()
    foreign = order(worker, 1)
    tasks = {"wine": replace(foreign.tasks["wine"], proxy_digest="0" * 64)}

    for work in (worker.alone, worker.round, worker.finish):
        with pytest.raises(MismatchError, match="give both sides the same public pack"):
            work(replace(foreign, tasks=tasks))
    assert worker.store.versions() == {}


def test_what_may_not_leave_does_not(make: Make) -> None:
    worker = make(guard=Guard(frozenset({"soft-labels"})))

    with pytest.raises(RefusalError, match="this client lets out soft-labels"):
        worker.round(order(worker, 1, algorithm="fedavg"))
    assert worker.store.versions() == {}


def test_unknown_methods_and_options_are_refused(make: Make) -> None:
    worker = make()

    with pytest.raises(ConfigError, match="did you mean 'fedmd'"):
        worker.round(order(worker, 1, algorithm="fedmb"))
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        worker.round(order(worker, 1, options={"temprature": 2}))


def test_tasks_that_the_client_does_not_have_are_passed_over(make: Make) -> None:
    worker = make()
    more = order(worker, 1)
    tasks = {**more.tasks, "other": TaskOrder("0" * 64, np.arange(3))}

    assert set(worker.round(replace(more, tasks=tasks)).tasks) == {"wine"}


def test_a_client_that_is_none(small: Small) -> None:
    with pytest.raises(ConfigError, match=r"client number 4: expected 0 to 3 \(set clients.count"):
        simulated(small(), 4, None)
    with pytest.raises(DataError, match="expected"):
        simulated(small({"clients.count": 140, "tasks.wine.partition": {"minimum": 1}}), 0, None)


def test_a_client_with_few_classes_is_measured_on_those(make: Make) -> None:
    changes = {
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }
    worker = make(1, changes)

    holding = worker.holdings.tasks["wine"]

    assert holding.spec.classes == holding.data.classes
    assert len(holding.spec.classes) == 2
    whole = make(1).holdings.tasks["wine"].test
    assert whole is not None
    assert holding.test is not None
    known = [CLASSES.index(name) for name in holding.spec.classes]
    labels = whole.targets.tolist()
    kept = [row for row, label in enumerate(labels) if label in known]
    assert holding.test.targets.tolist() == [known.index(labels[row]) for row in kept]
    torch.testing.assert_close(holding.test.inputs, whole.inputs[kept])
    answer = worker.round(order(worker, 1))
    assert soft(answer).classes == holding.spec.classes
