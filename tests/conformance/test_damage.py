"""Whatever happens to a coded message on its way, it is refused, or what is read is sound: soon, in little memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common import records
from fedstill.common.codec import Codec, ContextCodec, with_context
from fedstill.common.context import Memories, Recall, Remembered, remember
from fedstill.common.errors import KnowledgeError, MismatchError, Reason
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.registry import CODECS
from fedstill.common.seeding import numpy_rng

CONTEXT = [name for name in CODECS.names() if getattr(CODECS.get(name), "uses_context", False)]

LONGEST = 5.0
"""Seconds for one small message, on a busy machine; it takes some milliseconds."""

LARGEST = 2**26
"""Bytes for one small message: thirty rows over the widest label space take an eighth of it."""


def distributions(seed: int, rows: int, classes: int, sharp: float = 3.0) -> NDArray[np.float32]:
    weights = np.exp(numpy_rng(seed, "damage").normal(size=(rows, classes)) * sharp)
    return np.asarray(weights / weights.sum(-1, keepdims=True), dtype=np.float32)


def labels(values: NDArray[np.float32]) -> SoftLabels:
    return SoftLabels("categorical", tuple(map(str, range(values.shape[1]))), np.arange(len(values)), values)


def codec_of(name: str) -> Codec:
    codec: Codec = CODECS.get(name)()
    return codec


def context_codec_of(name: str) -> ContextCodec:
    codec = with_context(codec_of(name))
    assert codec is not None
    return codec


def bounded(work: Callable[[], Any]) -> Any:
    """What the work gives, or the error by which it refuses; neither takes long or fills the memory."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        found = work()
    except (KnowledgeError, MismatchError) as error:
        found = error
    took, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < LONGEST
    assert peak < LARGEST
    return found


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """With a flipped bit, cut, longer, or with a piece of something else in it."""
    place = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    if not whole:
        return b"\0"
    return data.draw(
        st.one_of(
            st.integers(0, 7).map(lambda bit: whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]),
            st.just(whole[:place]),
            st.binary(min_size=1, max_size=9).map(lambda more: whole + more),
            st.binary(min_size=1, max_size=9).map(lambda piece: whole[:place] + piece + whole[place + len(piece) :]),
        )
    )


SIZES = st.tuples(st.integers(0, 99), st.integers(1, 30), st.sampled_from([2, 3, 10, 40, 200]))
"""Seed, rows and classes."""


@pytest.mark.parametrize("name", CODECS.names())
@settings(max_examples=60, deadline=None)
@given(size=SIZES, data=st.data())
def test_damaged_arrays(name: str, size: tuple[int, int, int], data: st.DataObject) -> None:
    packed = dict(codec_of(name).encode({"values": distributions(*size)}))
    key = data.draw(st.sampled_from(sorted(packed)))
    whole = packed[key]
    changed = np.frombuffer(bytearray(damaged(data, whole.tobytes())), np.uint8)
    usable = len(changed) // whole.dtype.itemsize * whole.dtype.itemsize
    flat = changed[:usable].view(whole.dtype)
    packed[key] = flat.reshape(whole.shape) if flat.size == whole.size else flat
    if data.draw(st.integers(0, 9)) == 0:
        del packed[key]

    def read() -> SoftLabels | None:
        back = codec_of(name).decode(packed).get("values")
        if back is None or back.ndim != 2 or back.dtype != np.float32:
            raise KnowledgeError("something else", "expected a matrix")  # as `SoftLabels.from_parts` says
        return labels(np.asarray(back))

    found = bounded(read)
    assert isinstance(found, KnowledgeError) or np.isfinite(found.values).all()


def order(codec: str, consensus: SoftLabels | None = None, own: Remembered | None = None) -> Order:
    task = TaskOrder("digest", np.arange(30), consensus, own=own)
    return Order("run", 2, 3, 1, 1, 1, Method("fedmd", {}, Training(), CODECS.get(codec)()), {"pets": task})


def sent(told: SoftLabels, asked: Order) -> RecordDict:
    return records.write_answer(Answer("c", "run", 2, 1, 1, {"pets": TaskAnswer("digest", 5, told)}), asked)


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("name", CODECS.names())
@settings(max_examples=40, deadline=None)
@given(size=SIZES, data=st.data())
def test_damaged_messages(name: str, *, in_context: bool, size: tuple[int, int, int], data: st.DataObject) -> None:
    told = labels(distributions(*size))
    asked = order(name, *((labels(distributions(7, *size[1:])), remember(told)) if in_context else ()))
    content = sent(told, asked)
    parts = content.array_records["knowledge.pets"]
    key = data.draw(st.sampled_from(sorted(parts)))
    whole = parts[key]
    parts[key] = Array(whole.dtype, whole.shape, whole.stype, damaged(data, whole.data))

    found = bounded(lambda: records.read_answer(content, asked))
    if isinstance(found, Answer):
        told_again = found.tasks["pets"].knowledge
        assert isinstance(told_again, SoftLabels)
        assert np.isfinite(told_again.values).all()


# Context -------------------------------------------------------------------------------------------------------------


def remembered(data: st.DataObject, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Something like the values, in parts unknown, or nothing."""
    rows, classes = values.shape
    what = data.draw(st.integers(0, 4))
    if what == 0:
        return None
    other = distributions(data.draw(st.integers(0, 99)), rows, classes)
    mixed = np.asarray((values + what * other) / (1 + what), dtype=np.float32)
    mixed[data.draw(st.integers(0, rows)) :] = np.nan
    mixed[:, data.draw(st.integers(1, classes)) :] = np.nan
    return mixed


@pytest.mark.parametrize("name", CONTEXT)
@settings(max_examples=60, deadline=None)
@given(size=SIZES, count=st.integers(0, 2), data=st.data())
def test_any_context_gives_back_the_same(
    name: str, size: tuple[int, int, int], count: int, data: st.DataObject
) -> None:
    codec, values = context_codec_of(name), distributions(*size)
    known = {"values": [remembered(data, values) for _ in range(count)]}
    alone, coded = (codec.encode({"values": values}, sides) for sides in ({}, known))
    np.testing.assert_array_equal(codec.decode(coded, known)["values"], codec.decode(alone)["values"])
    assert sum(one.nbytes for one in coded.values()) <= sum(one.nbytes for one in alone.values())


@pytest.mark.parametrize("name", CONTEXT)
@settings(max_examples=80, deadline=None)
@given(size=SIZES, count=st.integers(1, 2), data=st.data())
def test_sides_that_have_drifted_apart_notice_or_agree(
    name: str, size: tuple[int, int, int], count: int, data: st.DataObject
) -> None:
    codec, values = context_codec_of(name), distributions(*size)
    mine, yours = ({"values": [remembered(data, values) for _ in range(count)]} for _ in range(2))
    coded = codec.encode({"values": values}, mine)
    found = bounded(lambda: codec.decode(coded, yours)["values"])
    if isinstance(found, KnowledgeError):
        assert found.reason is Reason.CONTEXT
    else:
        np.testing.assert_array_equal(found, codec.decode(coded, mine)["values"])


@pytest.mark.parametrize("name", CONTEXT)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), lost=st.integers(1, 5))
def test_a_side_that_has_lost_its_memory_is_back_after_one_message_by_itself(name: str, seed: int, lost: int) -> None:
    """Six rounds; after `lost` of them the client starts anew, and the server tells it all once."""
    codec = CODECS.get(name)()
    here: Remembered | None = None
    there: Remembered | None = None
    refused = []
    for number in range(1, 7):
        mixed = distributions(seed, 30, 10) * 9 + distributions(seed + number, 30, 10)
        consensus = labels(np.asarray(mixed / mixed.sum(-1, keepdims=True), dtype=np.float32))
        if number == lost + 1:
            there = None
        task = TaskOrder("digest", np.arange(30), consensus, heard=here)
        asked = Order("run", number, 6, 1, 1, 0, Method("fedmd", {}, Training(), codec), {"pets": task})
        try:
            heard = records.read_order(records.write_order(asked), _recall(there))
        except KnowledgeError as error:
            refused.append((number, error.reason))
            task = TaskOrder("digest", np.arange(30), consensus)
            asked = Order("run", number, 6, 1, 1, 0, Method("fedmd", {}, Training(), codec), {"pets": task})
            heard = records.read_order(records.write_order(asked), _recall(there))
        came = heard.tasks["pets"].knowledge
        alone = codec.decode(codec.encode({"values": consensus.values}))["values"]
        assert isinstance(came, SoftLabels)
        np.testing.assert_array_equal(came.values, alone)
        here, there = remember(labels(alone)), remember(came)
    assert refused == [(lost + 1, Reason.CONTEXT)]


def _recall(memory: Remembered | None) -> Recall:
    return lambda run, version, task: Memories(heard=memory)
