"""COMET's clusters, means and steps, with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.algorithms.comet import COMET, clustered, nearest_of, vectors
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.losses import soft_label_loss
from fedstill.common.models import build_model
from fedstill.common.sides import Client, ClientInfo, Server
from fedstill.common.task import Examples, TaskSpec

SPACE = ("cat", "dog", "cow")
SPEC = TaskSpec("pets", "categorical", "tabular", SPACE, (2,))
LEFT, RIGHT = [0.9, 0.1, 0.0], [0.1, 0.8, 0.1]


def labels(*rows: list[float], classes: tuple[str, ...] = SPACE, samples: tuple[int, ...] = ()) -> SoftLabels:
    return SoftLabels("categorical", classes, np.array(samples or range(len(rows))), np.array(rows, np.float32))


def parts(samples: list[int]) -> dict[str, Any]:
    return {
        "spec": SPEC,
        "model_name": "linear-softmax",
        "model": build_model("linear-softmax", SPEC, seed=1),
        "proxy": ProxySet(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 0.5]])),
        "samples": np.array(samples),
        "training": Training(epochs=1, batch_size=8),
        "seed": 1,
        "round": 2,
    }


def server(*names: str) -> Server:
    infos = tuple(ClientInfo(name, "linear-softmax", 9, 10, SPACE) for name in names)
    return Server(**parts([0]), clients=infos)


def said(client: str, *rows: list[float], samples: tuple[int, ...] = ()) -> Contribution:
    return Contribution(client, 10, labels(*rows, samples=samples))


def values(knowledge: Knowledge | None) -> list[list[float]]:
    assert isinstance(knowledge, SoftLabels)
    return [[round(value, 5) for value in row] for row in knowledge.values.tolist()]


def test_rows_that_lie_together_are_a_cluster() -> None:
    rows = np.array([[1.0, 0], [0, 0], [1.1, 0], [0, 0.1], [0.9, 0]])
    assert clustered(rows, 2, seed=1) == [0, 1, 0, 1, 0]
    assert clustered(rows, 1, seed=1) == [0] * 5
    assert clustered(rows, 9, seed=1) == [0, 1, 2, 3, 4]
    assert clustered(np.ones((3, 2)), 2, seed=1) == [0, 0, 0]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_every_row_is_in_the_cluster_of_the_nearest_centre(points: list[list[float]], clusters: int, seed: int) -> None:
    rows = np.array(points)
    places = np.array(clustered(rows, clusters, seed=seed))

    assert clustered(rows, clusters, seed=seed) == places.tolist()
    assert len(set(places.tolist())) == places.max() + 1 <= clusters
    centres = np.stack([rows[places == place].mean(0) for place in range(places.max() + 1)])
    distances = ((rows[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_allclose(distances[range(len(rows)), places], distances.min(1), atol=1e-9)


def test_a_class_that_a_client_lacks_has_the_mean_of_the_others() -> None:
    opinions = [labels([0.8, 0.2], classes=SPACE[:2]), labels([0.5, 0.5], classes=SPACE[1:]), labels([0.4, 0.4, 0.2])]

    np.testing.assert_allclose(
        vectors(opinions, space=SPACE), [[0.8, 0.2, 0.35], [0.6, 0.5, 0.5], [0.4, 0.4, 0.2]], rtol=1e-6
    )


def test_each_cluster_hears_its_mean_and_who_is_away_the_nearest_one() -> None:
    side = server("a", "b", "c", "d", "e", "f")
    method = COMET()
    method.merge(side, [said("a", LEFT), said("d", RIGHT), said("e", LEFT, samples=(3,))])

    told = method.merge(side, [said("a", [0.7, 0.3, 0]), said("b", [0.9, 0.1, 0]), said("c", RIGHT)])

    assert values(told.common) == [[0.56667, 0.4, 0.03333]]
    assert {name: values(one) for name, one in told.own.items()} == {
        "a": [[0.8, 0.2, 0]],
        "b": [[0.8, 0.2, 0]],
        "c": [RIGHT],
        "d": [RIGHT],  # it was away, and would say RIGHT again
    }
    assert told.own["a"] is told.own["b"]
    # "e" answered about a sample that nobody spoke of now, and "f" never: they hear what is common.


def test_the_nearest_is_found_on_what_there_is_in_common() -> None:
    means = [labels(LEFT, RIGHT, samples=(0, 1)), labels(RIGHT, LEFT, samples=(0, 1))]
    second = labels([0.2, 0.8], classes=SPACE[:2], samples=(1,))

    assert nearest_of(means, second, space=SPACE) is means[0]
    assert nearest_of(means, labels(RIGHT, samples=(7,)), space=SPACE) is None


def client(samples: list[int]) -> Client:
    private = Examples(torch.tensor([[1.0, 1.0], [0.5, -1.0], [0.0, 2.0]]), torch.tensor([0, 1, 2]))
    return Client(**parts(samples), name="a", private=private)


def test_the_loss_is_the_tasks_own_and_that_of_the_clusters_mean() -> None:
    side = client([0, 2])
    told = labels(LEFT, RIGHT, samples=(0, 2))
    with torch.no_grad():
        own = SPEC.kind.loss(side.model(side.private.inputs), side.private.targets)
        beside = side.model(side.proxy.at(told.samples))
        apart = soft_label_loss(beside, torch.from_numpy(told.values), kind=SPEC.kind, temperature=1.0)

    found = side.train_beside(told, weight=0.25)

    assert found == pytest.approx(float(own + 0.25 * apart), rel=1e-6)
    assert client([0]).train_beside(labels([0.2, 0.8], classes=SPACE[1:]), weight=1.0) != client([0]).train()
    strange = SoftLabels("categorical", ("horse",), np.array([0]), np.ones((1, 1), np.float32))
    assert client([0]).train_beside(strange, weight=1.0) == client([0]).train()


def test_what_was_told_is_heard_once() -> None:
    side, alone = client([0]), client([0])
    method = COMET()
    method.absorb(side, labels(RIGHT))
    assert torch.equal(side.predict(side.proxy.inputs), alone.predict(side.proxy.inputs))

    first, plain = method.local(side), method.local(alone)

    assert side.memory == {}
    assert not np.array_equal(first.values, plain.values)


def test_what_is_refused() -> None:
    wrong: dict[str, Any]
    for wrong in ({"clusters": 0}, {"weight": 0.0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            COMET(**wrong)
