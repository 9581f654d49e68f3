"""What nobody reaches goes, and its memory goes back to the system where the C library can do that."""

from __future__ import annotations

import ctypes
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fedstill.server import heap


def resident() -> int:
    """Bytes of this process."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def test_what_holds_itself_goes() -> None:
    content = RecordDict({"arrays": ArrayRecord({"a": Array(np.ones(3))})})
    assert list(content.array_records) == ["arrays"]
    held = weakref.ref(content)
    gc.disable()
    try:
        del content
        assert held() is not None, "Flower has mended it, and nothing need be collected"
        heap.give_back()
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_is_free_between_things_that_stay_is_given_back() -> None:
    kept = [b"x" * 50_000 for _ in range(2_000)]  # 100 MB, below the size from which each has a place of its own
    del kept[:-1]  # the last one stays, on top
    gc.collect()
    before = resident()
    heap.give_back()
    assert resident() < before - 50_000_000
    assert len(kept) == 1


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(ctypes, "CDLL", asked.append)  # gives None, which has no such function
    heap.give_back()
    assert asked == [None]
