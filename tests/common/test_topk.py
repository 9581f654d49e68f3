from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common.codecs.topk import TopK
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Arrays
from fedstill.common.seeding import numpy_rng

CODEC = TopK()


def distributions(*shape: int, seed: int = 0, sharp: float = 3.0) -> NDArray[np.float32]:
    scores = numpy_rng(seed, "topk").normal(size=shape) * sharp
    weights = np.exp(scores)
    return np.asarray(weights / weights.sum(-1, keepdims=True), dtype=np.float32)


def test_by_hand() -> None:
    row = np.zeros(40, dtype=np.float32)
    row[:16] = 1 / 32  # half of it on the first sixteen …
    row[39] = 0.25
    row[20:36] = 1 / 64  # … and the least of it is left out
    packed = CODEC.encode({"x": row[None]})
    assert {name: array.shape for name, array in packed.items()} == {"x": (1, 16), "x:places": (1, 16), "x:width": ()}
    assert packed["x:places"][0, -1] == 39
    assert CODEC.decode(packed)["x"].dtype == np.float32
    back = np.asarray(CODEC.decode(packed)["x"], dtype=np.float64)
    # Fifteen of 1/32 and 1/4 remain: 23/32 is brought to 1.
    assert back[0, 39] == pytest.approx(8 / 23)
    assert np.count_nonzero(back) == TopK().kept
    assert back.sum() == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(33, 300), st.floats(0.1, 8))
def test_places_order_and_sums_remain(seed: int, width: int, sharp: float) -> None:
    values = distributions(3, 4, width, seed=seed, sharp=sharp)
    back = np.asarray(CODEC.decode(CODEC.encode({"x": values}))["x"], dtype=np.float64)
    assert back.shape == values.shape
    kept = back > 0
    assert (kept.sum(-1) <= TopK().kept).all()
    # What is kept is what was largest, in the same proportions.
    assert (back[kept] >= values[kept] * 0.999999).all()
    np.testing.assert_array_equal(back.argmax(-1), values.argmax(-1))
    np.testing.assert_allclose(back.sum(-1), 1, atol=1e-5)
    left_out = 1 - np.sort(values, -1)[..., -TopK().kept :].sum(-1)
    np.testing.assert_allclose(np.abs(back - values).sum(-1), 2 * left_out, atol=1e-5)


def test_rows_without_a_label_stay_blank() -> None:
    values = distributions(2, 3, 50)
    values[1, 1:] = 0
    back = CODEC.decode(CODEC.encode({"values": values}))["values"]
    assert not back[1, 1:].any()
    assert back[1, 0].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "array",
    [
        distributions(3, 32),  # 16 values and 16 places would be as long
        distributions(40)[None][0],
        distributions(3, 40) * 2,
        np.log(distributions(3, 40)),
        np.zeros((3, 40), dtype=np.int64),
        np.zeros((0, 40), dtype=np.float32),
    ],
    ids=["short", "vector", "sums of 2", "raw outputs", "whole numbers", "empty"],
)
def test_what_is_no_long_distribution_stays_as_it_is(array: NDArray[np.generic]) -> None:
    packed = CODEC.encode({"x": array})
    assert list(packed) == ["x"]
    assert packed["x"] is array
    assert CODEC.decode(packed)["x"] is array


def test_a_vocabulary_takes_a_fortieth_of_its_bytes() -> None:
    values = distributions(20, 1000)
    packed = CODEC.encode({"x": values})
    assert values.nbytes / sum(array.nbytes for array in packed.values()) > 40


def packed(**others: NDArray[np.generic]) -> Arrays:
    return {**CODEC.encode({"x": distributions(2, 40)}), **{f"x:{name}": array for name, array in others.items()}}


@pytest.mark.parametrize(
    "arrays",
    [
        packed(width=np.array(20)),
        packed(width=np.array([40])),
        packed(width=np.array(40.0)),
        packed(width=np.array(-1)),
        packed(places=np.zeros((2, 15), dtype=np.uint16)),
        packed(places=np.zeros((2, 16), dtype=np.int64)),
        {name: array for name, array in packed().items() if name != "x:width"},
    ],
)
def test_malformed_arrays(arrays: Arrays) -> None:
    with pytest.raises(KnowledgeError, match="expected one place inside the row for each value") as caught:
        CODEC.decode(arrays)
    assert caught.value.reason == Reason.SHAPE


def test_a_small_message_must_not_fill_the_memory() -> None:
    with pytest.raises(KnowledgeError, match="expected at most 268435456 numbers") as caught:
        CODEC.decode(packed(width=np.array(2**40)))
    assert caught.value.reason == Reason.TOO_LARGE
