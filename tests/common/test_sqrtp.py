from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common.codecs import _levels
from fedstill.common.codecs.sqrtp import _FORMAT, LARGEST, SqrtP, _squares
from fedstill.common.errors import ConfigError, KnowledgeError, Reason
from fedstill.common.seeding import numpy_rng

CODEC = SqrtP()


def soft(*shape: int, seed: int = 0, sharp: float = 3.0) -> NDArray[np.float32]:
    weights = np.exp(numpy_rng(seed, "sqrtp").normal(size=shape) * sharp)
    return np.asarray(weights / weights.sum(-1, keepdims=True), dtype=np.float32)


def message(array: NDArray[np.float32], codec: SqrtP = CODEC) -> bytes:
    return codec.encode({"x": array})["x:sqrtp"].tobytes()


def read(data: bytes) -> NDArray[np.generic]:
    return CODEC.decode({"x:sqrtp": np.frombuffer(data, dtype=np.uint8)})["x"]


def sealed(body: bytes) -> bytes:
    """With a check sum that is right: what an attacker sends."""
    return struct.pack("<I", zlib.crc32(body)) + body


def test_levels_by_hand() -> None:
    rows = np.array([[0.64, 0.36, 0], [0.72, 0.18, 0.1], [1, 0, 0], [0, 0, 0]], dtype=np.float32)
    back = read(message(rows))
    # Roots 0.8, 0.6 are 4 and 3 fifths; 0.849, 0.424, 0.316 are 4.2, 2.1 and 1.6.
    np.testing.assert_array_equal(back[0], np.array([16, 9, 0], dtype=np.float32) / np.float32(25))
    np.testing.assert_allclose(back[1], np.array([16, 4, 4]) / 24, rtol=1e-7)
    assert back[2].tolist() == [1, 0, 0]
    assert back[3].tolist() == [0, 0, 0]
    assert back.dtype == np.float32


def test_a_row_too_flat_for_the_step_is_uniform() -> None:
    rows = np.full((2, 200), 1 / 200, dtype=np.float32)
    np.testing.assert_array_equal(read(message(rows)), rows)


def test_rows_of_one_level_cost_next_to_nothing() -> None:
    # Two of three rows are even, with roots of 1.6 steps; the others say one class of ten.
    rows = np.eye(10, dtype=np.float32)[numpy_rng(0, "doubting").integers(0, 10, 900)]
    rows[np.arange(900) % 3 > 0] = 0.1
    assert np.abs(read(message(rows)).astype(np.float32) - rows).max() < 1e-6
    assert len(message(rows)) * 8 / 900 < 1.4 * (np.log2(10) / 3 + 0.92)  # their entropy, and tables to learn


def test_doubt_among_many_classes_stays_doubt() -> None:
    # 0.2² is one of five levels; √(0.96 / 149) = 0.08 is none, and what is left goes to those evenly.
    rows = np.full((1, 150), 0.96 / 149, dtype=np.float32)
    rows[0, 7] = 0.04
    np.testing.assert_allclose(np.asarray(read(message(rows))), rows, rtol=1e-6)
    # Two levels of 1 leave 23 of 25 to three zeros, which take a fifth each: their roots were less than half a step.
    few = np.array([[0.04, 0.04, 0.0, 0.0, 0.0]], dtype=np.float32) / np.float32(0.08)
    levels = np.array([[1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(_squares(levels, np.array([False]), 5), [[1, 1, 0.2, 0.2, 0.2]])
    np.testing.assert_array_equal(_squares(0 * levels, np.array([True]), 5), 0 * levels)
    np.testing.assert_allclose(np.asarray(read(message(few))), few, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.tuples(st.integers(1, 60), st.integers(1, 3), st.integers(2, 30)),
    st.floats(0, 8),
    st.integers(1, 31),
)
def test_the_error_is_bounded(seed: int, shape: tuple[int, ...], sharp: float, levels: int) -> None:
    classes = shape[-1]
    values = soft(*shape, seed=seed, sharp=sharp)
    values[::7, :1] = 0
    codec = SqrtP(levels=levels)
    back = np.asarray(codec.decode(codec.encode({"x": values}))["x"], dtype=np.float64)
    assert back.shape == values.shape
    np.testing.assert_allclose(back.sum(-1), values.any(-1), atol=1e-6)
    error = np.abs(back - values)
    assert error.sum(-1).max() <= min(classes**0.5 / levels, 2) + 1e-5
    assert error.max() <= classes**0.5 / levels / 2 + 1e-5


def test_every_message_reads_as_the_levels_that_were_written() -> None:
    # The levels themselves, beyond what distributions can be: no mass left, every level, blank rows, few rows.
    rng = numpy_rng(3, "levels")
    for rows, classes, top in [(1, 2, 1), (15, 3, 31), (700, 10, 5), (40, 300, 4)]:
        levels = rng.integers(0, top + 1, (rows, classes))
        blank = rng.random(rows) < 0.2
        levels[blank] = 0
        sides = [rng.integers(-1, top + 1, (rows, classes)) for _ in range(int(rng.integers(0, 3)))]
        data = _levels.encode_levels(levels.copy(), blank.copy(), sides, top)
        back, none = _levels.decode_levels(data, (rows, classes), sides, top)
        np.testing.assert_array_equal(back, levels)
        np.testing.assert_array_equal(none, blank)


def test_frequencies_are_whole_numbers_that_need_no_rounding() -> None:
    counts = numpy_rng(1, "counts").integers(0, 10**9, (50, 6)) + 1
    tables = _levels._frequencies(counts)
    # The coder multiplies them by (2²⁴ − 6) / sum and truncates: by 1, then.
    assert (tables.sum(1) == 2**24 - 6).all()
    assert (tables == np.floor(tables)).all()
    assert (np.abs(tables / tables.sum(1, keepdims=True) - counts / counts.sum(1, keepdims=True)) < 1e-6).all()


def test_what_is_coded_takes_the_bits_that_the_tables_say() -> None:
    # A fair coin of two levels: 1 bit a row, and little more for the tables to learn it.
    rows = np.zeros((20000, 2), dtype=np.float32)
    rows[np.arange(20000), numpy_rng(0, "coin").integers(0, 2, 20000)] = 1
    assert 1 <= len(message(rows)) * 8 / 20000 < 1.02
    assert len(message(rows[:1].repeat(20000, 0))) < 120


def test_the_bytes_are_the_same_on_every_machine() -> None:
    """A golden message: a change of the format or of the model needs another number of the format."""
    weights = numpy_rng(0, "golden").integers(0, 60, (300, 10)) ** 2  # no exponential, whose last bit differs
    data = message((weights / weights.sum(1, keepdims=True)).astype(np.float32))
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == GOLDEN
    program = (
        "import sys, numpy as np; from fedstill.common.codecs.sqrtp import SqrtP;"
        "data = np.frombuffer(sys.stdin.buffer.read(), dtype=np.uint8);"
        "back = SqrtP().decode({'x:sqrtp': data})['x'];"
        "again = SqrtP().encode({'x': back})['x:sqrtp'];"
        "sys.stdout.buffer.write(back.tobytes() + again.tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True, timeout=60)
    back = read(data)
    again = CODEC.encode({"x": back})["x:sqrtp"]
    assert other.stdout == back.tobytes() + again.tobytes()


GOLDEN = (832, "140695c655a06606")


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.5, 0.5], dtype=np.float32),
        np.ones((3, 1), dtype=np.float32),
        soft(3, 1025),
        soft(3, 4) * 2,
        np.log(soft(3, 4)),
        np.zeros((3, 4), dtype=np.int64),
        np.zeros((0, 4), dtype=np.float32),
    ],
    ids=["vector", "one class", "wide", "sums of 2", "raw outputs", "whole numbers", "empty"],
)
def test_what_is_no_distribution_stays_as_it_is(array: NDArray[np.generic]) -> None:
    packed = CODEC.encode({"x": array})
    assert packed["x"] is array
    assert CODEC.decode(packed)["x"] is array


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.data())
def test_every_flipped_bit_and_every_cut_is_seen(seed: int, rows: int, data: st.DataObject) -> None:
    whole = message(soft(rows, 5, seed=seed))
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    for broken in (bytes(flipped), whole[: place // 8], whole + b"\0"):
        with pytest.raises(KnowledgeError):
            read(broken)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 31), st.integers(0, 3), st.integers(0, 50), st.integers(0, 12), st.binary(max_size=60))
def test_strangers_bytes_give_rows_or_an_error(top: int, mask: int, rows: int, classes: int, coded: bytes) -> None:
    body = struct.pack("<BBBBII", _FORMAT, top, mask, 2, rows, classes) + coded
    try:
        back = read(sealed(body))
    except KnowledgeError:
        return
    assert back.shape == (rows, classes)
    np.testing.assert_allclose(back.sum(-1)[back.any(-1)], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (struct.pack("<BBBBII", _FORMAT, 5, 0, 2, 2**31, 2**31), Reason.TOO_LARGE),
        (struct.pack("<BBBBII", _FORMAT, 5, 0, 2, LARGEST, 2), Reason.TOO_LARGE),
        (struct.pack("<BBBBII", _FORMAT, 5, 0, 2, 1, 1025), Reason.TOO_LARGE),
        (struct.pack("<BBBBII", _FORMAT, 5, 0, 2, 0, 5), Reason.TOO_LARGE),
        (struct.pack("<BBBBI", _FORMAT, 5, 0, 1, 5), Reason.SHAPE),
        (struct.pack("<BBBBII", 1, 5, 0, 2, 1, 5), Reason.MALFORMED),
        (struct.pack("<BBBBII", _FORMAT, 32, 0, 2, 1, 5), Reason.MALFORMED),
        (struct.pack("<BBBBII", _FORMAT, 0, 0, 2, 1, 5), Reason.MALFORMED),
        (struct.pack("<BBBBII", _FORMAT, 5, 0, 2, 1, 5) + b"abc", Reason.MALFORMED),
        (struct.pack("<BBBBII", _FORMAT, 5, 0, 2, 1, 5) + b"\xff" * 8, Reason.MALFORMED),
        (struct.pack("<BBB8sBII", _FORMAT, 5, 1, b"elsewise", 2, 1, 5), Reason.CONTEXT),
        (struct.pack("<BBB", _FORMAT, 5, 1), Reason.SHAPE),
        (b"", Reason.SHAPE),
    ],
)
def test_malformed_messages(body: bytes, reason: Reason) -> None:
    with pytest.raises(KnowledgeError) as caught:
        read(sealed(body) if body else b"abc")
    assert caught.value.reason == (reason if body else Reason.MALFORMED)


def test_a_small_message_keeps_nobody_busy_for_long() -> None:
    body = struct.pack("<BBBBII", _FORMAT, 5, 0, 2, LARGEST // 1024, 1024)
    started = time.perf_counter()
    assert read(sealed(body)).shape == (LARGEST // 1024, 1024)
    assert time.perf_counter() - started < 60  # about 2 s here


def test_5000_rows_of_ten_classes_in_time() -> None:
    values = soft(5000, 10)
    took = []
    for _ in range(3):
        started = time.process_time()
        CODEC.decode(CODEC.encode({"x": values}))
        took.append(time.process_time() - started)
    assert min(took) < 0.25  # 20 ms here: five times the bar, for slow machines


def test_without_its_package_the_codec_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ConfigError, match=r"expected the extra 'codec' \(pip install 'fedstill\[codec\]', on both"):
        SqrtP()


@pytest.mark.parametrize("levels", [0, 32])
def test_levels_out_of_range(levels: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 <= value <= 31"):
        SqrtP(levels=levels)


# In the context of what both sides know ------------------------------------------------------------------------------


def known(seed: int, *, rows: int = 800) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """A message, an own one before it and a consensus, which are like it."""
    rng = numpy_rng(seed, "known")
    scores = rng.normal(size=(rows, 10)) * 3
    found = [np.exp(scores + rng.normal(size=scores.shape) * noise) for noise in (0.0, 0.3, 1.0)]
    now, own, consensus = (np.asarray(one / one.sum(1, keepdims=True), dtype=np.float32) for one in found)
    return now, own, consensus


def test_what_both_sides_know_saves_bytes() -> None:
    now, own, consensus = known(0, rows=3000)
    sizes = [
        CODEC.encode({"x": now}, {"x": sides})["x:sqrtp"].nbytes
        for sides in ((), (None, consensus), (own, None), (own, consensus))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]


@pytest.mark.parametrize("which", [(), (0,), (1,), (0, 1)])
def test_round_trip_in_context(which: tuple[int, ...]) -> None:
    now, *others = known(1)
    others[0][:100] = np.nan  # not everything was told before
    others[1][:, 3] = np.nan
    sides = {"x": [one if place in which else None for place, one in enumerate(others)]}
    packed = CODEC.encode({"x": now}, sides)
    np.testing.assert_array_equal(CODEC.decode(packed, sides)["x"], read(message(now)))
    # Whoever knows more than was used reads it as well.
    np.testing.assert_array_equal(CODEC.decode(packed, {"x": others})["x"], read(message(now)))


def test_another_context_is_refused() -> None:
    now, own, consensus = known(2)
    packed = CODEC.encode({"x": now}, {"x": (own, consensus)})
    strange = own.copy()
    strange[7] = strange[7, ::-1]
    for sides in ((), (own,), (own, None), (None, consensus), (consensus, own), (strange, consensus), (own[1:], own)):
        with pytest.raises(KnowledgeError, match="coded in the context of other messages") as caught:
            CODEC.decode(packed, {"x": sides})
        assert caught.value.reason == Reason.CONTEXT


def test_a_context_that_tells_nothing_is_left_out() -> None:
    now, own, _ = known(3)
    nothing = np.full_like(own, np.nan)
    assert CODEC.encode({"x": now}, {"x": (nothing, own[:5])})["x:sqrtp"].tobytes() == message(now)
