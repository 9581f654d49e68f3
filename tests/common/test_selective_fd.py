"""Selective-FD: the density ratio, both selectors, and runs in which clients answer on other samples."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.algorithms.selective_fd import SelectiveFD
from fedstill.common.density import density_ratio
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, SoftLabels

Play = Callable[..., Any]


def labels(samples: list[int], values: Any) -> SoftLabels:
    return SoftLabels("categorical", ("a", "b"), np.array(samples), np.array(values, dtype=np.float32))


def test_the_ratio_by_hand() -> None:
    """One sample on each side, far apart, λ = 0.5: α = 0, so that ŵ(z) = k(z, y) / λ."""
    far, here = torch.tensor([[100.0]]), torch.tensor([[0.0]])
    found = density_ratio(here, far, torch.tensor([[0.0], [1.0]]), width=1.0, weight=0.5)
    np.testing.assert_allclose(found.numpy(), [2.0, 2 * np.exp(-0.5)], rtol=1e-12)
    # The same sample on both sides: α = −(1 + 0.5)⁻¹ · 1 / 0.5 = −4/3, and ŵ = −4/3 + 2 at it.
    same = density_ratio(here, here, here, width=1.0, weight=0.5)
    np.testing.assert_allclose(same.numpy(), [2 / 3], rtol=1e-12)


def test_the_ratio_is_larger_where_the_data_is() -> None:
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(200, 2, generator=generator)
    uniform = torch.rand(200, 2, generator=generator) * 16 - 8
    found = density_ratio(own, uniform, torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 6.0]]), width=1.0, weight=0.1)
    assert found[0] > found[1] > found[2]
    assert abs(float(found[2])) < 0.05 * float(found[0])


def merged(opinions: list[SoftLabels], **options: Any) -> SoftLabels:
    server: Any = SimpleNamespace(spec=SimpleNamespace(classes=("a", "b")))
    return SelectiveFD(**options).merge(server, [Contribution(str(i), 1, one) for i, one in enumerate(opinions)])


def test_the_mean_is_of_those_that_answered_and_ambiguous_ones_are_dropped() -> None:
    opinions = [labels([1, 2], [[1, 0], [0.9, 0.1]]), labels([2, 5], [[0.1, 0.9], [0.25, 0.75]])]
    # Sample 2 is (0.5, 0.5): its distance from a hard label is 1, that of sample 5 is 0.5.
    told = merged(opinions, ambiguity=0.6)
    assert told.samples.tolist() == [1, 5]
    np.testing.assert_allclose(told.values, np.array([[1, 0], [0.25, 0.75]]), rtol=1e-6)
    assert merged(opinions, ambiguity=2.0).samples.tolist() == [1, 2, 5]
    assert merged(opinions[1:], ambiguity=0.1).samples.tolist() == [2]  # the clearest stays


@pytest.mark.parametrize("wrong", [{"quantile": 1.0}, {"ambiguity": 0.0}, {"width": 0.0}, {"distil_epochs": 0}])
def test_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SelectiveFD(**wrong)


def test_clients_answer_on_samples_like_their_own(play_small: Play) -> None:
    """Clients with two of three wines, half of them in a round: fewer samples, fewer bytes, nobody refused."""
    changes = {
        "tasks.wine.models": ["mlp-small", "mlp-medium"],
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
        "clients.cohort": 0.5,
        "rounds.count": 2,
    }
    some = play_small(changes | {"algorithm": {"name": "selective-fd", "quantile": 0.5}}, name="some")
    full = play_small(changes | {"algorithm": {"name": "fedmd"}}, name="full")

    assert [record["rejected"] for record in some.records] == [[]] * 4
    told, mean = (played.states[-1].tasks["wine"].knowledge for played in (some, full))
    assert isinstance(told, SoftLabels)
    assert set(told.samples) < set(mean.samples)
    assert (told.values.max(-1) >= 0.5).all()
    assert some.records[1]["bytes"]["up"] != full.records[1]["bytes"]["up"]
