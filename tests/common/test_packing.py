"""Messages in few bytes: nothing is lost, nothing is inflated without limit, and broken bytes are refused."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.errors import KnowledgeError, MismatchError, Reason
from fedstill.common.packing import LARGEST, LARGEST_PART, content_bytes, packed, unpacked
from fedstill.common.wire import opened

TEXTS = st.text(max_size=12)
VALUES = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=40) | st.booleans()


def message(**head: Any) -> RecordDict:
    return RecordDict({"fedstill": ConfigRecord({"protocol": 3, "run": "r", "round": 7, **head})})


def same(one: RecordDict, other: RecordDict) -> bool:
    by_name = [sorted((recorddict_to_proto(c)).SerializeToString(deterministic=True)) for c in (one, other)]
    return set(one) == set(other) and by_name[0] == by_name[1]


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(TEXTS.map("x".__add__), VALUES, max_size=5),
    st.dictionaries(TEXTS.map("task.".__add__), st.dictionaries(TEXTS, VALUES, max_size=4), max_size=3),
    st.integers(0, 3000),
)
def test_what_is_packed_comes_out_again(head: dict[str, Any], tasks: dict[str, dict[str, Any]], size: int) -> None:
    content = message(**head)
    for name, values in tasks.items():
        content[name] = ConfigRecord(values)
        content[f"metrics.{name}"] = MetricRecord({"a": 0.5, "b": [0.25, float("nan")]})
        content[f"knowledge.{name}"] = ArrayRecord({"values": Array(np.arange(size, dtype=np.uint8))})
    small = packed(content, apart=["task."])
    assert content_bytes(small) <= content_bytes(content)
    assert same(unpacked(small), content)
    assert same(unpacked(content), content)
    assert content_bytes(packed(small)) == content_bytes(small)


def test_only_names_of_both_sides_are_to_be_seen_from_outside() -> None:
    content = message(text="a" * 500)
    content["client"] = ConfigRecord({"version": 4})
    small = packed(content, apart=["client"])
    assert dict(small.config_records["client"]) == {"version": 4}
    assert set(small.config_records["fedstill"]) == {"protocol", "run", "packed"}


@pytest.mark.parametrize("name", ["a", "z", "9-"])
def test_a_runs_name_does_not_change_the_size_of_the_rest(name: str) -> None:
    sizes = [content_bytes(packed(message(run=run * 20, text="t" * 300))) for run in ("k", name)]
    assert sizes[1] - sizes[0] == 20 * (len(name) - 1)


def test_large_arrays_stay_as_they_are() -> None:
    content = message(text="a" * 500)
    large = {"large-1": LARGEST_PART + 1, "large-2": 5 * LARGEST_PART}
    for name, size in {**large, "small": 100}.items():
        content[f"knowledge.{name}"] = ArrayRecord({"values": Array(np.zeros(size, np.uint8))})
    small = packed(content)
    assert set(small) == {"fedstill", "large"}
    [array] = small.array_records["large"].values()
    assert array.data == b"".join(content.array_records[f"knowledge.{name}"]["values"].data for name in large)
    assert same(unpacked(small), content)


@pytest.mark.parametrize(("arrays", "objects"), [(1, 6), (200, 6), (3000, 8)])  # the last has 12 MB
def test_a_message_is_few_objects_whatever_it_holds(arrays: int, objects: int) -> None:
    content = message(text="a" * 500)
    for task in ("one", "two"):
        weights = {str(number): Array(np.full(LARGEST_PART, number % 256, np.uint8)) for number in range(arrays)}
        content[f"knowledge.{task}"] = ArrayRecord(weights)
    assert len(get_all_nested_objects(packed(content))) + 1 == objects  # and the message itself


def large(data: bytes = b"123456", sizes: Any = (2, 4), keys: Any = ("knowledge.a",)) -> RecordDict:
    """A packed message whose arrays' bytes lie beside it: two bytes and four, unless it says something else."""
    inner = message(large=list(keys), sizes=list(sizes))
    inner["knowledge.a"] = ArrayRecord({"x": Array("u1", (2,), "s", b""), "y": Array("u1", (4,), "s", b"")})
    inner["task.a"] = ConfigRecord({"classes": ["a class"] * 100})
    content = packed(inner)
    content["large"] = ArrayRecord({"large": Array("", (), "", data)})
    return content


def test_arrays_get_their_own_bytes() -> None:
    content = unpacked(large())
    assert [array.data for array in content.array_records["knowledge.a"].values()] == [b"12", b"3456"]
    assert set(content) == {"fedstill", "knowledge.a", "task.a"}
    assert set(content.config_records["fedstill"]) == {"protocol", "run", "round"}


BROKEN: dict[str, Callable[[], RecordDict]] = {
    "too few bytes": lambda: large(b"12345"),
    "too many bytes": lambda: large(b"1234567"),
    "too few sizes": lambda: large(sizes=[6]),
    "a size below zero": lambda: large(sizes=[7, -1]),
    "sizes that are none": lambda: large(sizes=["2", "4"]),
    "another record": lambda: large(keys=["task.a"]),
    "no record": lambda: large(keys=["knowledge.b"]),
    "a record twice": lambda: large(b"123456" * 2, sizes=[2, 4, 2, 4, 1], keys=["knowledge.a"] * 2),
    "no bytes": lambda: RecordDict({"fedstill": large()["fedstill"]}),
    "other bytes": lambda: RecordDict({"fedstill": large()["fedstill"], "large": ArrayRecord()}),
    "a setting": lambda: RecordDict({"fedstill": large()["fedstill"], "large": ConfigRecord({"large": b"123456"})}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_large_arrays_are_refused(what: str) -> None:
    with pytest.raises(KnowledgeError, match=r"arrays of \d+ bytes: expected|expected records"):
        unpacked(BROKEN[what]())


def test_little_is_not_made_more() -> None:
    content = message()
    assert packed(content) is content
    headless = RecordDict({"other": ConfigRecord({"text": "a" * 500})})
    assert packed(headless) is headless


def test_no_more_is_inflated_than_may_be() -> None:
    content = message(text="a" * (LARGEST + 1))
    assert packed(content) is content
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = press.compress(bytes(50 * LARGEST)) + press.flush()
    assert len(bomb) < LARGEST / 10
    with pytest.raises(KnowledgeError, match="expected all of one that unpacks to at most") as caught:
        unpacked(message(packed=bomb))
    assert caught.value.reason is Reason.TOO_LARGE


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10_000), st.integers(0, 7), st.booleans())
def test_broken_bytes_are_refused_or_read_as_records(place: int, bit: int, cut: bool) -> None:
    content = message(text="some text", number=0.5)
    content["task.pets"] = ConfigRecord({"classes": ["cat", "dog"] * 20})
    small = packed(content)
    data = bytearray(small.config_records["fedstill"]["packed"])  # type: ignore[arg-type]
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    small.config_records["fedstill"]["packed"] = bytes(data)
    try:
        read = unpacked(small)
    except KnowledgeError:
        return
    assert not cut
    assert isinstance(read, RecordDict)


def test_the_protocol_is_compared_before_anything_is_inflated() -> None:
    with pytest.raises(MismatchError, match="protocol 2: expected 5"):
        opened(message(protocol=2, packed=b"\xff\xff"))
