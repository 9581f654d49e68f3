from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedstill.common.data.federation import TaskShare, client_names, federate
from fedstill.common.errors import DataError
from fedstill.common.scenario import PartitionPlan, ProxyPlan, Scenario, TaskPlan, single_task
from fedstill.common.tasks.image import ImageTask
from fedstill.common.tasks.tabular import TabularTask
from fedstill.common.tasks.text import TextTask

DIGITS = TaskPlan(ImageTask(), ("cnn-small",), proxy=ProxyPlan(200))
LABELS = ["", "red", "green", "blue"]


def share(plan: TaskPlan, clients: int = 4, seed: int = 1, data_dir: Path | None = None) -> TaskShare:
    return federate(single_task(plan, clients=clients, seed=seed), data_dir).tasks[plan.task.name]


def rows_of(share: TaskShare) -> list[tuple[float, ...]]:
    """Every input of the proxy set and of all clients, sorted."""
    parts = [share.proxy.inputs]
    parts += [examples.inputs for data in share.clients.values() for examples in (data.private, data.holdout)]
    return sorted(tuple(row.flatten().tolist()) for part in parts for row in part)


@pytest.mark.parametrize(
    "partition",
    [PartitionPlan("iid"), PartitionPlan("dirichlet", alpha=0.3), PartitionPlan("pathological", classes=9)],
)
def test_nothing_is_lost_or_held_twice(partition: PartitionPlan) -> None:
    split = share(replace(DIGITS, partition=partition))
    task = ImageTask()
    data = task.load(None)
    assert data.test is not None
    assert split.test is not None
    assert len(split.proxy) == len(split.proxy_targets) == 200
    assert len(split.test) == len(data.test)
    assert list(split.clients) == ["client-0", "client-1", "client-2", "client-3"]
    assert len(rows_of(split)) == len(data.pool)
    # Every digit of the pool is there once: the shares of any other kind of partition hold the same rows.
    assert rows_of(split) == rows_of(share(DIGITS))


def test_holdout_private_and_test_sizes() -> None:
    split = share(replace(DIGITS, private=400, holdout=0.25, test=100))
    assert split.test is not None
    assert len(split.test) == 100
    assert [(len(data.private), len(data.holdout)) for data in split.clients.values()] == [(75, 25)] * 4
    assert len(split.pooled()) == 300
    none = share(replace(DIGITS, private=400, holdout=0))
    assert [(len(data.private), len(data.holdout)) for data in none.clients.values()] == [(100, 0)] * 4


def test_only_the_proxy_set_decides_how_inputs_are_scaled() -> None:
    split = share(DIGITS)
    assert float(split.proxy.inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(split.proxy.inputs.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert all(data.private.inputs.dtype == torch.float32 for data in split.clients.values())


def test_seed_decides_the_split() -> None:
    plan = replace(DIGITS, partition=PartitionPlan("dirichlet", alpha=0.3))
    first, other = share(plan, seed=1), share(plan, seed=2)
    federate(single_task(DIGITS, clients=2, seed=9), None)
    federate(single_task(DIGITS, clients=3, seed=9), None)
    again = share(plan, seed=1)
    assert first is not again
    assert first.proxy.digest == again.proxy.digest != other.proxy.digest
    for name in first.clients:
        assert torch.equal(first.clients[name].private.inputs, again.clients[name].private.inputs)
        assert torch.equal(first.clients[name].holdout.targets, again.clients[name].holdout.targets)


def test_the_last_split_is_kept_whatever_the_algorithm_is() -> None:
    scenario = single_task(DIGITS, clients=4, seed=1)
    assert federate(scenario, None) is federate(replace(scenario, name="other"), None)


def test_own_label_spaces_hold_what_a_client_has() -> None:
    plan = replace(DIGITS, partition=PartitionPlan("pathological", classes=2), label_space="own")
    own, shared = share(plan, 10), share(replace(plan, label_space="shared"), 10)
    assert own.spec.classes == shared.spec.classes == tuple("0123456789")
    for name, data in own.clients.items():
        full = shared.clients[name]
        assert full.classes == own.spec.classes
        assert len(data.classes) == 2
        for mine, theirs in ((data.private, full.private), (data.holdout, full.holdout)):
            assert torch.equal(mine.inputs, theirs.inputs)
            assert [data.classes[label] for label in mine.targets] == [full.classes[label] for label in theirs.targets]


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    """Three owners with 12, 9 and 3 rows; "small" knows no "blue"."""
    lines = ["size,shop,colour"]
    lines += [f"{n},big,{LABELS[1 + n % 3]}" for n in range(12)]
    lines += [f"{n},small,{LABELS[1 + n % 2]}" for n in range(9)]
    lines += [f"{n},tiny,red" for n in range(3)]
    (tmp_path / "shops.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


SHOPS = TaskPlan(
    TabularTask(source="shops.csv", owner="shop", test_share=0),
    ("mlp-small",),
    proxy=ProxyPlan(2),
    partition=PartitionPlan("natural", minimum=5),
    label_space="own",
)


def test_natural_owners_give_clients_their_names(shops: Path) -> None:
    federation = federate(single_task(SHOPS, clients=2), shops)
    split = federation.tasks["tabular"]
    assert federation.names == ("big", "small")
    assert split.test is None
    assert split.spec.input_shape == (1,)
    assert split.clients["small"].classes == ("green", "red")
    assert split.clients["big"].classes == ("blue", "green", "red")


def test_a_client_without_enough_examples(shops: Path) -> None:
    with pytest.raises(DataError, match=r"clients.count=3: expected at most 2, the owners with at least 5 examples"):
        share(SHOPS, 3, data_dir=shops)
    few = replace(SHOPS, partition=PartitionPlan("iid", minimum=1), private=2)
    with pytest.raises(DataError, match=r"client 2 with 0 examples: expected at least partition.minimum=1"):
        share(few, 3, data_dir=shops)
    with pytest.raises(DataError, match=r"tasks.tabular: 24 examples: expected more than proxy.samples=24"):
        share(replace(SHOPS, proxy=ProxyPlan(24)), 2, data_dir=shops)


def test_tasks_of_some_clients_only(shops: Path) -> None:
    tabular = replace(SHOPS, clients=(2, 0), partition=PartitionPlan("natural", minimum=5))
    scenario = Scenario(tasks={"digits": DIGITS, "shops": tabular}, algorithm=single_task(DIGITS, clients=4).algorithm)
    federation = federate(replace(scenario, clients=replace(scenario.clients, count=4)), shops)
    assert federation.names == client_names(4)
    assert list(federation.tasks["digits"].clients) == list(federation.names)
    assert set(federation.tasks["shops"].clients) == {"client-0", "client-2"}
    assert federation.tasks["shops"].clients["client-0"].classes == ("green", "red")


def test_text_tasks_tell_models_their_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("".join(f"word{n} here,{n % 2}\n" for n in range(60)))
    split = share(
        TaskPlan(TextTask("a.csv", vocabulary=50, length=4), ("bag-small",), proxy=ProxyPlan(8)), 2, 1, tmp_path
    )
    assert split.spec.vocabulary == 50
    assert split.spec.input_shape == (4,)
    assert split.proxy.inputs.dtype == torch.int64
    assert share(DIGITS).spec.vocabulary == 0


def test_client_names_sort_as_their_numbers() -> None:
    assert client_names(3) == ("client-0", "client-1", "client-2")
    assert client_names(101)[:2] == ("client-000", "client-001")
    assert sorted(client_names(101)) == list(client_names(101))


def test_an_iid_split_imports_no_heavy_package() -> None:
    code = (
        "import sys; from pathlib import Path; from fedstill.common.data.federation import federate;"
        "from fedstill.common.scenario import single_task; from fedstill.common.tasks.image import ImageTask;"
        "federate(single_task(ImageTask(), 'cnn-small', clients=3), None);"
        "print([name for name in ('datasets', 'sklearn', 'pandas', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("plan", "clients"),
    [
        (TaskPlan(ImageTask("mnist"), ("cnn-small",), partition=PartitionPlan("natural", minimum=80)), 20),
        (TaskPlan(TextTask("clinc150", length=16), ("bag-small",), partition=PartitionPlan("natural")), 10),
        (
            TaskPlan(
                TabularTask("heart_disease", header=False, positive_above=0, owner="file"),
                ("mlp-small",),
                proxy=ProxyPlan(100),
                partition=PartitionPlan("natural"),
            ),
            4,
        ),
    ],
)
def test_real_owners(data_dir: Path, plan: TaskPlan, clients: int) -> None:
    federation = federate(single_task(plan, clients=clients), data_dir)
    split = federation.tasks[plan.task.name]
    assert len(federation.names) == clients
    assert split.test is not None
    for name in federation.names:
        private = split.clients[name].private
        assert set(private.groups) == {name}
        assert len(private) >= plan.partition.minimum * (1 - plan.holdout)
