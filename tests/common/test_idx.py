from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedstill.common.data.idx import dimensions, read_idx
from fedstill.common.errors import DataError

WriteIdx = Callable[[Path, NDArray[np.generic]], None]

KINDS = st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"])
# Two bytes, a type (bytes), two dimensions, their sizes 2 and 3, six numbers.
BYTES = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])


@pytest.mark.parametrize("packed", [False, True])
def test_bytes_by_hand(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(BYTES, mtime=0) if packed else BYTES)
    assert read_idx(path).tolist() == [[1, 2, 3], [4, 5, 255]]
    assert dimensions(path) == 2


def test_numbers_of_four_bytes_are_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes([0, 0, 0x0C, 1, 0, 0, 0, 2, 0, 0, 1, 0, 255, 255, 255, 255]))
    numbers = read_idx(path)
    assert numbers.tolist() == [256, -1]
    assert numbers.dtype == np.int32


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(array=KINDS.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(max_dims=4, max_side=4))))
def test_round_trip(tmp_path: Path, write_idx: WriteIdx, array: NDArray[np.generic]) -> None:
    for name in ("a", "a.gz"):
        write_idx(tmp_path / name, array)
        back = read_idx(tmp_path / name)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
        assert dimensions(tmp_path / name) == array.ndim


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not empty"),
        (b"\0\0", "expected an idx file"),
        (b"\x89PNG" + BYTES, "begins with 89 50 4e 47"),
        (bytes([0, 0, 7, 1]) + BYTES, "expected an idx file"),
        (bytes([0, 0, 8, 0]), "expected an idx file"),
        (BYTES[:9], "expected 2 sizes"),
        (BYTES[:-1], "of 17 bytes: expected 18 for 2 × 3 numbers of 1 bytes"),
        (BYTES + b"\0", "of 19 bytes: expected 18"),
        (bytes([0, 0, 14, 3]) + b"\xff" * 12, "of 16 bytes: expected"),
        (gzip.compress(BYTES, mtime=0)[:-9], "cannot be unpacked"),
        (gzip.compress(BYTES, mtime=0)[:-8] + b"\0" * 8, "cannot be unpacked"),
        (b"\x1f\x8b" + b"no gzip at all", "cannot be unpacked"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_bytes_are_an_array_or_an_error_of_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    dimensions(path)
    try:
        array = read_idx(path)
    except DataError:
        return
    assert array.ndim == dimensions(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_idx(tmp_path / "none")
    assert dimensions(tmp_path / "none") == 0
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_idx(tmp_path)
