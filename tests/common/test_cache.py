"""Labels that are kept over rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common import records
from fedstill.common.cache import LabelCache, completed, updated
from fedstill.common.codecs.raw import Raw
from fedstill.common.context import Memories
from fedstill.common.ensemble import powered
from fedstill.common.errors import KnowledgeError, Reason, UnsupportedError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Method, Order, TaskOrder

AB = ("a", "b")


def labels(samples: list[int], values: Any, classes: tuple[str, ...] = AB, output: str = "categorical") -> SoftLabels:
    return SoftLabels(output, classes, np.array(samples, dtype=np.int64), np.array(values, dtype=np.float32))


def test_newer_labels_replace_older_ones() -> None:
    cache = updated(None, labels([5, 2], [[0.5, 0.5], [1, 0]]), 1, space=AB)
    cache = updated(cache, labels([3, 5], [[0.25, 0.75], [0, 1]]), 4, space=AB)

    assert cache.labels.samples.tolist() == [2, 3, 5]
    assert cache.rounds.tolist() == [1, 4, 4]
    assert cache.labels.values.tolist() == [[1, 0], [0.25, 0.75], [0, 1]]
    assert cache.rounds_of(np.array([5, 9, 2, 0])).tolist() == [4, -1, 1, -1]
    assert cache.about(np.array([5, 9])).values.tolist() == [[0, 1]]


def test_a_new_class_is_0_in_older_labels() -> None:
    cache = updated(None, labels([1], [[0.5, 0.5]]), 1)
    wide = updated(cache, labels([2], [[0.25, 0.75]], ("c", "a")), 2, space=("a", "b", "c"))
    free = updated(cache, labels([2], [[0.25, 0.75]], ("c", "a")), 2)

    assert (wide.labels.classes, free.labels.classes) == (("a", "b", "c"), ("a", "b", "c"))
    assert wide.labels.values.tolist() == [[0.5, 0.5, 0], [0.75, 0, 0.25]]


def test_labels_of_another_temperature_begin_a_new_cache() -> None:
    cache = updated(None, labels([1], [[0.5, 0.5]]), 1)
    hot = SoftLabels("categorical", AB, np.array([2]), np.array([[1, 0]], np.float32), 2.0)
    assert updated(cache, hot, 2).labels.samples.tolist() == [2]


@given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 9))
def test_tensors_and_back(samples: set[int], number: int) -> None:
    rng = np.random.default_rng(number)
    cache = updated(None, labels(list(samples), rng.dirichlet([1, 1], len(samples))), number)
    back = LabelCache.from_tensors(cache.tensors())
    assert back is not None
    assert back.labels.header() == cache.labels.header()
    assert np.array_equal(back.labels.values, cache.labels.values)
    assert np.array_equal(back.labels.samples, cache.labels.samples)
    assert np.array_equal(back.rounds, cache.rounds)
    assert LabelCache.from_tensors({}) is None


def test_powers_by_hand() -> None:
    # 0.6² : 0.4² = 0.36 : 0.16
    told = powered(labels([1, 2], [[0.6, 0.4], [1, 0]]), 2.0)
    np.testing.assert_allclose(told.values, np.array([[0.36 / 0.52, 0.16 / 0.52], [1, 0]]), rtol=1e-6)
    # The two-class case for each of two labels: 0.8² / (0.8² + 0.2²)
    tags = powered(labels([1], [[0.8, 0.5]], output="multi-label"), 2.0)
    np.testing.assert_allclose(tags.values, np.array([[0.64 / 0.68, 0.5]]), rtol=1e-6)
    np.testing.assert_array_equal(powered(labels([1], [[0.6, 0.4]]), 1.0).values, labels([1], [[0.6, 0.4]]).values)


def test_powers_of_what_is_no_distribution() -> None:
    numbers = SoftLabels("regression", ("x",), np.array([1]), np.array([[3]], np.float32))
    with pytest.raises(UnsupportedError, match="expected distributions over classes"):
        powered(numbers, 2.0)


# On the wire ---------------------------------------------------------------------------------------------------------

KNOWLEDGE = labels([2, 4, 6], [[0.5, 0.5], [0.25, 0.75], [1, 0]])


def told(recalled: list[int], memory: LabelCache | None) -> Order:
    task = TaskOrder("digest", np.array([1, 2]), KNOWLEDGE, recalled=np.array(recalled, dtype=np.int64))
    order = Order("run", 3, 9, 1, 1, 2, Method("scarlet", {}, Training(), Raw()), {"pets": task})
    content = records.write_order(order)
    sent = content.array_records["knowledge.pets"]["values"]
    assert sent.numpy().shape == (3 - len(recalled), 2)
    return records.read_order(content, lambda *_: Memories(told=memory))


def test_what_is_remembered_does_not_travel() -> None:
    memory = updated(None, labels([4, 6, 8], [[0, 1], [0.75, 0.25], [1, 0]], ("b", "a")), 1)
    heard = told([4, 6], memory).tasks["pets"].knowledge

    assert isinstance(heard, SoftLabels)
    assert heard.samples.tolist() == [2, 4, 6]
    # The client's own labels count, not what the server has.
    assert heard.values.tolist() == [[0.5, 0.5], [1, 0], [0.25, 0.75]]


@pytest.mark.parametrize("memory", [None, updated(None, labels([4], [[1, 0]]), 1)])
def test_what_was_lost_has_to_be_told_again(memory: LabelCache | None) -> None:
    with pytest.raises(KnowledgeError, match="expected to have been told them") as caught:
        told([4, 6], memory)
    assert caught.value.reason is Reason.CONTEXT


def test_a_confused_server_is_refused() -> None:
    cache = updated(None, KNOWLEDGE, 1)
    with pytest.raises(KnowledgeError, match="expected one of both"):
        completed(KNOWLEDGE, cache, np.array([2]))
    with pytest.raises(KnowledgeError, match="expected soft labels"):
        completed(None, cache, np.array([2]))
