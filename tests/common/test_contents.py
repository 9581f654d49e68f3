"""Records by their kind, of a message that nothing holds once it is read."""

from __future__ import annotations

import gc
import weakref

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedstill.common.contents import named, of_kind


def test_records_by_kind_and_name() -> None:
    head, arrays = ConfigRecord({"run": "a"}), ArrayRecord({"w": Array(np.ones(3))})
    content = RecordDict({"head": head, "arrays": arrays})
    assert of_kind(content, ConfigRecord) == {"head": head}
    assert of_kind(content, ArrayRecord)["arrays"] is arrays
    assert of_kind(content, MetricRecord) == {}
    assert named(content, "head", ConfigRecord) is head
    assert dict(named(content, "arrays", ConfigRecord)) == dict(named(content, "nobody", ConfigRecord)) == {}


def test_what_was_read_is_held_by_nothing() -> None:
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(3))})})
    held = weakref.ref(content)
    gc.disable()
    try:
        assert list(of_kind(content, ArrayRecord)) == ["arrays"]
        assert list(named(content, "arrays", ArrayRecord)) == ["w"]
        del content
        assert held() is None
    finally:
        gc.enable()
