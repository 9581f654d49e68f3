"""Every codec that is discovered gives back what it took, up to the loss that it declares in its first line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedstill.common.codec import Codec
from fedstill.common.errors import KnowledgeError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.registry import CODECS, first_line

LOSS = {
    "raw": (0.0, 0.0),
    "fp16": (2.0**-11, 2.0**-25),
    "topk": (0.0, 0.0),
    "int8": (2.0**-10, 1 / 510 + 2.0**-23),
    "argmax": (0.0, 1.0),
    "sqrtp": (0.0, 5**0.5 / 10 + 1e-6),
}
"""Largest relative and absolute error. A new codec without an entry has to be within those of soft labels."""

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@pytest.fixture(params=CODECS.names())
def codec(request: pytest.FixtureRequest) -> Codec:
    made: Codec = CODECS.get(request.param)()
    return made


def test_what_it_says_of_itself(codec: Codec) -> None:
    assert codec.name in CODECS.names()
    assert first_line(codec)
    assert codec.name in LOSS


@settings(max_examples=60, deadline=None)
@given(values=arrays.arrays(np.float32, SHAPES, elements=st.floats(-60000, 60000, width=32)))
def test_floats_come_back_within_the_declared_loss(values: NDArray[np.float32]) -> None:
    for name in CODECS.names():
        codec = CODECS.get(name)()
        if getattr(codec, "only_distributions", False):
            continue
        back = codec.decode(codec.encode({"x": values, "y": values * 0}))

        relative, absolute = LOSS[name]
        assert back["x"].dtype == np.float32
        np.testing.assert_allclose(back["x"], values, rtol=relative, atol=absolute)
        assert set(back) == {"x", "y"}


@settings(max_examples=30, deadline=None)
@given(values=arrays.arrays(st.sampled_from([np.int64, np.uint8, np.int32]), SHAPES))
def test_whole_numbers_come_back_exactly(values: NDArray[Any]) -> None:
    for name in CODECS.names():
        codec = CODECS.get(name)()
        if getattr(codec, "only_distributions", False):
            continue
        back = codec.decode(codec.encode({"x": values}))["x"]

        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)


@settings(max_examples=40, deadline=None)
@given(
    scores=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 200)), elements=st.floats(-30, 30, width=32)
    )
)
def test_probabilities_stay_probabilities(scores: NDArray[np.float32]) -> None:
    weights = np.exp(scores.astype(np.float64))
    soft = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    classes = tuple(map(str, range(soft.shape[1])))
    for name in CODECS.names():
        codec = CODECS.get(name)()
        back = codec.decode(codec.encode({"values": soft}))["values"]

        SoftLabels("categorical", classes, np.arange(len(soft)), np.asarray(back, dtype=np.float32))  # is admitted


def test_what_was_encoded_is_not_changed(codec: Codec) -> None:
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    soft = np.full((3, 40), 1 / 40, dtype=np.float32)
    for array in (soft,) if getattr(codec, "only_distributions", False) else (soft, values):
        before = array.copy()

        codec.decode(codec.encode({"x": array}))

        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    "name", [name for name in CODECS.names() if getattr(CODECS.get(name), "only_distributions", 0)]
)
@given(values=arrays.arrays(np.float32, SHAPES, elements=st.floats(-60000, 60000, width=32)))
def test_what_holds_distributions_only_refuses_the_rest(name: str, values: NDArray[np.float32]) -> None:
    rows = values.sum(-1, dtype=np.float64) if values.ndim else values
    codec = CODECS.get(name)()
    if values.ndim >= 2 and (values >= 0).all() and ((np.abs(rows - 1) < 1e-3) | (rows == 0)).all():
        assert codec.decode(codec.encode({"x": values}))["x"].shape == values.shape
    else:
        with pytest.raises(KnowledgeError, match=name):
            codec.encode({"x": values})


def test_what_a_codec_cannot_hold_is_refused() -> None:
    codec = CODECS.get("fp16")()

    with pytest.raises(KnowledgeError, match=r"'x' of 1e\+05: expected at most .*use codec 'raw'"):
        codec.encode({"x": np.array([1e5], dtype=np.float32)})
