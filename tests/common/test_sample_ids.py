"""Sample ids in few bits."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.sample_ids import elias_fano, from_elias_fano, read_ids, write_ids

IDS = st.sets(st.integers(0, 2**40), min_size=1, max_size=60).map(sorted)


def test_known_and_first_ones_cost_nothing() -> None:
    some, first = np.array([2, 5, 9]), np.arange(4)
    assert write_ids(some, some) == ("as-ordered", None)
    assert write_ids(first, some) == ("first 4", None)
    assert read_ids("as-ordered", None, some, most=0) is some
    assert read_ids("first 4", None, None, most=4).tolist() == [0, 1, 2, 3]


def test_exact_bits() -> None:
    # 3 up to 11: two low bits each. High parts 0, 1, 2 in unary: 1 01 01; low parts 1, 1, 3, the least bit first.
    written = elias_fano(np.array([1, 5, 11]))
    assert written[:9].tolist() == [3, 0, 0, 0, 5, 0, 0, 0, 2]
    assert np.unpackbits(written[9:])[:11].tolist() == [1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1]


@settings(deadline=None)
@given(IDS)
def test_ordered_ids_come_back_in_few_bits(ids: list[int]) -> None:
    form, array = write_ids(np.array(ids), None)
    back = read_ids(form, array, None, most=len(ids))
    assert back.tolist() == ids
    assert back.dtype == np.int64
    if array is not None:
        bits = len(ids) * (2 + max(0.0, math.log2((ids[-1] + 1) / len(ids))))
        assert 8 * (array.size - 9) <= bits + len(ids) + 8


def test_a_tenth_of_two_thousand_takes_less_than_a_byte_each() -> None:
    ids = np.sort(np.random.default_rng(1).choice(2000, 200, replace=False))
    assert elias_fano(ids).size < 150


def test_ids_in_another_order_are_listed() -> None:
    form, array = write_ids(np.array([9, 300, 5]), None)
    assert form == "listed"
    assert array is not None
    assert array.dtype == np.uint16
    assert read_ids(form, array, None, most=3).tolist() == [9, 300, 5]


@settings(deadline=None, max_examples=200)
@given(IDS, st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_broken_bytes_are_refused_or_increasing(ids: list[int], place: int, value: int, cut: bool) -> None:
    data = elias_fano(np.array(ids)).copy()
    place %= len(data)
    data[place] = value
    read = np.zeros(0, np.int64)
    with contextlib.suppress(KnowledgeError):
        read = from_elias_fano(data[:place] if cut else data, most=100)
    assert len(read) <= 100
    assert (np.diff(read) > 0).all()
    assert (read >= 0).all()


def test_no_more_are_counted_out_than_may_be() -> None:
    with pytest.raises(KnowledgeError, match="3 proxy samples: expected at most 2") as caught:
        from_elias_fano(elias_fano(np.array([1, 5, 11])), most=2)
    assert caught.value.reason is Reason.SAMPLES
    with pytest.raises(KnowledgeError, match="99 proxy samples: expected at most 2"):
        read_ids("first 99", None, None, most=2)


def test_other_forms_are_refused() -> None:
    for form, array in (("odd", None), ("ordered", None), ("listed", np.array([-1])), ("ordered", np.zeros(9))):
        with pytest.raises(KnowledgeError, match="sample ids"):
            read_ids(form, array, None, most=9)
