from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.data.preparation import moments
from fedstill.common.data.scaling import standardise_images, standardise_rows

NAN = float("nan")


def test_moments_by_hand() -> None:
    assert moments(np.array([1, 3], dtype=np.uint8)) == (2.0, 1.0)
    assert moments(np.array([2.0, 4.0, 9.0])) == pytest.approx((5.0, (26 / 3) ** 0.5))
    assert moments(np.array([], dtype=np.uint8)) == (0.0, 1.0)
    assert moments(np.array([7, 7, 7], dtype=np.uint8)) == (7.0, 1.0)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_moments_of_bytes_and_floats_agree_in_any_order(values: list[int]) -> None:
    exact = moments(np.array(values, dtype=np.uint8))
    assert moments(np.array(values[::-1], dtype=np.uint8)) == exact
    assert moments(np.array(values, dtype=np.float64)) == pytest.approx(exact)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_moments_of_floats_do_not_depend_on_the_order(values: list[float]) -> None:
    assert moments(np.array(values)) == moments(np.array(sorted(values)))


def test_images_use_each_channels_public_statistics() -> None:
    proxy = torch.tensor([[[[0, 2]], [[10, 10]]]], dtype=torch.uint8)  # means 1 and 10, deviations 1 and (constant) 1
    inputs = torch.tensor([[[[1, 5]], [[10, 13]]]], dtype=torch.uint8)
    ready = standardise_images(inputs, proxy)
    assert ready.dtype == torch.float32
    assert ready.tolist() == [[[[0.0, 4.0]], [[0.0, 3.0]]]]
    assert inputs.tolist() == [[[[1, 5]], [[10, 13]]]]


def test_rows_fill_gaps_leave_flags_and_cut_outliers() -> None:
    proxy = torch.tensor([[2.0, 0.0, 5.0, NAN], [4.0, 1.0, 5.0, NAN], [NAN, 1.0, 5.0, NAN]], dtype=torch.float64)
    inputs = torch.tensor([[5.0, 1.0, 5.0, 3.0], [NAN, NAN, NAN, NAN], [99.0, 0.0, 99.0, -99.0]], dtype=torch.float64)
    ready = standardise_rows(inputs, proxy)
    assert ready.dtype == torch.float32
    assert ready.tolist() == [
        [2.0, 1.0, 0.0, 3.0],
        [0.0, pytest.approx(2 / 3), 0.0, 0.0],
        [10.0, 0.0, 10.0, -10.0],
    ]


@given(st.lists(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=3, max_size=3), min_size=1, max_size=8))
def test_rows_are_always_finite(rows: list[list[float | None]]) -> None:
    raw = torch.tensor([[NAN if value is None else value for value in row] for row in rows], dtype=torch.float64)
    ready = standardise_rows(raw, raw[:1])
    assert ready.isfinite().all()
    assert ready.abs().max() <= 10
