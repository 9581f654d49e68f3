from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedstill.common.codecs.int8 import Int8
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.seeding import numpy_rng

CODEC = Int8()


def test_by_hand() -> None:
    # Multi-label: steps of 1/255 of the range from 0 to 1; 0.3 is 76.5 steps, and ties go to the even one.
    packed = CODEC.encode({"x": np.array([[0, 1, 0.3]], dtype=np.float32)})
    assert {name: array.tolist() for name, array in packed.items()} == {"x:int8": [[0, 0, 0, 0x3C, 0, 255, 77]]}
    back = CODEC.decode(packed)["x"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, np.array([[0, 1, 77 / 255]], dtype=np.float32))


def test_a_distribution_by_hand() -> None:
    packed = CODEC.encode({"x": np.array([[0.5, 0.25, 0.25], [0, 0, 0]], dtype=np.float32)})
    # 1/4 and 1/2 are numbers of half precision: 0x3400 and 0x3800. A row without a label stays blank.
    assert {name: array.tolist() for name, array in packed.items()} == {
        "x:int8-sums": [[0, 0x34, 0, 0x38, 255, 0, 0], [0, 0, 0, 0, 0, 0, 0]]
    }
    np.testing.assert_array_equal(CODEC.decode(packed)["x"], [[0.5, 0.25, 0.25], [0, 0, 0]])


def test_ten_classes_take_112_bits() -> None:
    soft = numpy_rng(0, "int8").dirichlet(np.ones(10), 500).astype(np.float32)
    [packed] = CODEC.encode({"x": soft}).values()
    assert packed.nbytes * 8 / 500 == 112


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=st.floats(0, 1, width=32)
    )
)
def test_the_error_is_half_a_step(values: NDArray[np.float32]) -> None:
    packed = CODEC.encode({"x": values})
    if "x:int8" not in packed:
        return
    back = np.asarray(CODEC.decode(packed)["x"], dtype=np.float64)
    width = np.ptp(values.astype(np.float64), axis=-1, keepdims=True)
    # Both ends are rounded outwards to half precision: 2⁻¹⁰ of an end at most, 2⁻²⁴ near 0.
    slack = values.max(-1, keepdims=True) * 2.0**-10 + 2.0**-23
    assert (np.abs(back - values) <= (width + 2 * slack) / 510 + slack * (width == 0) + 1e-7).all()
    assert ((back >= 0) & (back <= 1)).all()


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.5, 0.5], dtype=np.float32),
        np.array([[0.5, -0.5]], dtype=np.float32),
        np.array([[0.5, 1.5]], dtype=np.float32),
        np.array([[0.5, np.nan]], dtype=np.float32),
        np.array([[0, 1]]),
        np.zeros((0, 3), dtype=np.float32),
    ],
    ids=["vector", "negative", "above 1", "NaN", "whole numbers", "empty"],
)
def test_what_is_no_soft_label_stays_as_it_is(array: NDArray[np.generic]) -> None:
    packed = CODEC.encode({"x": array})
    assert packed["x"] is array
    assert CODEC.decode(packed)["x"] is array


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4), dtype=np.uint8), Reason.SHAPE),
        (np.zeros(9, dtype=np.uint8), Reason.SHAPE),
        (np.zeros((2, 7), dtype=np.int64), Reason.SHAPE),
        (np.array([[0, 0x40, 0, 0x40, 0, 0]], dtype=np.uint8), Reason.RANGE),  # 2
        (np.array([[0, 0x3C, 0, 0, 0, 0]], dtype=np.uint8), Reason.RANGE),  # from 1 to 0
        (np.array([[0, 0x7E, 0, 0x7E, 0, 0]], dtype=np.uint8), Reason.RANGE),  # NaN
        (np.array([[0, 0xBC, 0, 0x3C, 0, 0]], dtype=np.uint8), Reason.RANGE),  # −1
    ],
)
@pytest.mark.parametrize("suffix", ["int8", "int8-sums"])
def test_malformed_arrays(array: NDArray[np.generic], reason: Reason, suffix: str) -> None:
    with pytest.raises(KnowledgeError) as caught:
        CODEC.decode({f"x:{suffix}": array})
    assert caught.value.reason == reason
