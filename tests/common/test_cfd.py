"""CFD: quantised labels, and what the server's model makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.algorithms.cfd import CFD, quantised
from fedstill.common.errors import ConfigError, QuorumError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import ROUND

Play = Callable[..., Any]


def labels(values: Any) -> SoftLabels:
    array = np.array(values, dtype=np.float32)
    classes = tuple("abcdefgh"[: array.shape[-1]])
    return SoftLabels("categorical", classes, np.arange(len(array)), array)


def test_one_bit_is_the_likeliest_class() -> None:
    told = quantised(labels([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [1, 0, 0]]), 1)
    assert told.values.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_two_bits_by_hand() -> None:
    # Thirds: (0.6, 1.5, 0.9) is rounded down to (0, 1, 0), and the two that are left go to the remainders 0.9 and 0.6.
    told = quantised(labels([[0.2, 0.5, 0.3]]), 2)
    np.testing.assert_allclose(told.values, np.array([[1, 1, 1]]) / 3, rtol=1e-6)
    told = quantised(labels([[0.1, 0.75, 0.15]]), 2)
    # (0.3, 2.25, 0.45): one is left, for 0.45.
    np.testing.assert_allclose(told.values, np.array([[0, 2, 1]]) / 3, rtol=1e-6)


def test_rows_without_a_label_stay_so() -> None:
    tags = np.array([[[0.3, 0.7], [0, 0]]], dtype=np.float32)
    told = quantised(SoftLabels("token-level", ("x", "y"), np.array([0]), tags), 1)
    assert told.values.tolist() == [[[0, 1], [0, 0]]]


@given(st.integers(1, 16), st.integers(0, 99))
def test_no_other_label_of_the_grid_is_nearer(bits: int, seed: int) -> None:
    """To move one step from a class to another brings no label nearer."""
    values = np.random.default_rng(seed).dirichlet([0.5] * 4, 3).astype(np.float32)
    told = quantised(labels(values), bits).values.astype(np.float64)
    levels = 2**bits - 1
    np.testing.assert_allclose(told.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(told * levels, np.rint(told * levels), atol=1e-2)
    distance = np.abs(told - values).sum(-1)
    for source in range(4):
        for target in range(4):
            moved = told.copy()
            moved[:, source] -= 1 / levels
            moved[:, target] += 1 / levels
            nearer = np.abs(moved - values).sum(-1) < distance - 1e-6
            assert not (nearer & (moved[:, source] >= -1e-9)).any()


@pytest.mark.parametrize("wrong", [{"up_bits": 0}, {"down_bits": 17}, {"distil_epochs": 0}, {"server_epochs": 0}])
def test_options(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        CFD(**wrong)


def plan(codec: str, **options: int) -> dict[str, Any]:
    return {
        "algorithm": {"name": "cfd", **options},
        "codec": codec,
        "tasks.wine.models": ["mlp-small", "mlp-medium"],
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
        "clients.cohort": 0.5,
        "rounds.count": 3,
    }


def test_one_bit_both_ways_is_the_same_through_the_codec_of_classes(play_small: Play) -> None:
    """Absent clients, clients with two of three classes, two architectures: `argmax` loses nothing, and saves bytes."""
    sizes: dict[str, Counter[Any]] = {"raw": Counter(), "argmax": Counter()}

    def weighing(codec: str) -> Callable[[Message, Context, ClientApp], Message]:
        def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
            reply = inner(message, context)
            number = message.content.config_records["fedstill"].get("round")
            arrays = [array for record in reply.content.array_records.values() for array in record.values()]
            sizes[codec][number] += sum(len(array.data) for array in arrays)
            return reply

        return tamper

    raw = play_small(plan("raw", **{"down-bits": 1}), tamper=weighing("raw"), name="raw")
    hot = play_small(plan("argmax", **{"down-bits": 1}), tamper=weighing("argmax"), name="hot")

    assert [record["rejected"] for record in raw.records] == [[]] * 5
    assert [record["tasks"] for record in hot.records] == [record["tasks"] for record in raw.records]
    # Forty labels of two classes: 8 bytes each, or 2 bits; packing then makes little of either, for they are 0 or 1.
    for one, other in zip(raw.records[1:4], hot.records[1:4], strict=True):
        assert sizes["raw"][one["step"]] - sizes["argmax"][one["step"]] > 0.8 * 2 * (40 * 8 - 40 / 4)
        assert one["bytes"]["up"] > other["bytes"]["up"]
    told = hot.states[-1].tasks["wine"].knowledge
    assert isinstance(told, SoftLabels)
    assert set(np.unique(told.values)) == {0, 1}
    assert (told.values.sum(-1) == 1).all()


def test_the_servers_model_outlives_a_crash(play_small: Play) -> None:
    changes = plan("raw") | {"clients.quorum": 1.0, "rounds.attempts": 1}
    down = True

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        number = message.content.config_records["fedstill"].get("round")
        if down and message.metadata.message_type == ROUND and number == 3:
            raise RuntimeError("no power")
        return inner(message, context)

    clean = play_small(changes, name="cln")
    with pytest.raises(QuorumError):
        play_small(changes, tamper=tamper)
    down = False
    resumed = play_small(changes)

    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]
    first, second = (clean.states[step].tasks["wine"].model for step in (1, 2))
    assert any(not torch.equal(first[key], second[key]) for key in first)
    for key, value in clean.states[-1].tasks["wine"].model.items():
        assert torch.equal(value, resumed.states[-1].tasks["wine"].model[key])
