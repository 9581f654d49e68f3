from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common.codecs.argmax import Argmax
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.seeding import numpy_rng

CODEC = Argmax()


def packed(*lengths: int, data: bytes = b"") -> NDArray[np.uint8]:
    return np.frombuffer(struct.pack(f"<B{len(lengths)}I", len(lengths), *lengths) + data, dtype=np.uint8)


def test_by_hand() -> None:
    soft = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0, 0, 0], [0, 0, 1]], dtype=np.float32)
    told = CODEC.encode({"x": soft})["x"]
    # Two axes of 4 and 3; then classes 1, 0, "none" = 3 and 2 in two bits each, the lowest bit first.
    assert told.tolist() == [2, 4, 0, 0, 0, 3, 0, 0, 0, 0b10_11_00_01]
    back = CODEC.decode({"x": told})["x"]
    assert back.dtype == np.float32
    assert back.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(0, 9), st.integers(1, 4), st.integers(1, 40))
def test_the_likeliest_class_remains(seed: int, rows: int, positions: int, classes: int) -> None:
    soft = numpy_rng(seed, "argmax").dirichlet(np.ones(classes), (rows, positions)).astype(np.float32)
    soft[1::2, :1] = 0
    told = CODEC.encode({"values": soft})["values"]
    back = CODEC.decode({"values": told})["values"]
    assert back.shape == soft.shape
    np.testing.assert_array_equal(back.sum(-1), soft.any(-1))
    np.testing.assert_array_equal(back.argmax(-1), soft.argmax(-1))


def test_ten_classes_take_four_bits() -> None:
    soft = numpy_rng(0, "argmax").dirichlet(np.ones(10), 5000).astype(np.float32)
    assert CODEC.encode({"x": soft})["x"].nbytes == 2500 + 9


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.5, 0.5], dtype=np.float32),
        np.array([[0.5, 0.6]], dtype=np.float32),
        np.array([[1.5, -0.5]], dtype=np.float32),
        np.array([[np.nan, 0.5]], dtype=np.float32),
        np.array([[0, 1]]),
    ],
    ids=["vector", "sum", "negative", "NaN", "whole numbers"],
)
def test_what_is_no_distribution_is_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(KnowledgeError, match=r"which codec 'argmax' cannot hold: expected rows that sum to 1 \(use"):
        CODEC.encode({"x": array})


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (packed(4, 3, data=b"\0\0"), Reason.SHAPE),
        (packed(4, 3), Reason.SHAPE),
        (packed(4, data=b"\0"), Reason.SHAPE),
        (packed(4, 3)[:-1], Reason.SHAPE),
        (packed(), Reason.SHAPE),
        (packed(*[1] * 9, data=b"\0"), Reason.SHAPE),
        (packed()[:0], Reason.SHAPE),
        (packed(1, 2, data=b"\0").astype(np.int64), Reason.TYPE),
        (packed(1, 2, data=b"\0")[None], Reason.TYPE),
        (packed(1, 2, data=b"\3"), Reason.RANGE),
        (packed(2**20, 2**20, data=b"\0"), Reason.TOO_LARGE),
        (packed(2**32 - 1, 0, data=b"\0"), Reason.TOO_LARGE),
        (packed(0, *[2**32 - 1] * 7), Reason.TOO_LARGE),
    ],
)
def test_malformed_arrays(array: NDArray[np.generic], reason: Reason) -> None:
    with pytest.raises(KnowledgeError) as caught:
        CODEC.decode({"x": array})
    assert caught.value.reason == reason


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_strangers_bytes_give_rows_or_an_error(data: bytes) -> None:
    try:
        back = CODEC.decode({"x": np.frombuffer(data, dtype=np.uint8)})["x"]
    except KnowledgeError:
        return
    assert set(np.unique(back.sum(-1))) <= {0, 1}
