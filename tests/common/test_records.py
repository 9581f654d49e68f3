"""Orders, answers and descriptions through Flower's real serialisation and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedstill.common import introduction, records
from fedstill.common.errors import KnowledgeError, MismatchError, Reason
from fedstill.common.knowledge import Knowledge, Parameters, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import (
    Answer,
    Description,
    Method,
    Order,
    Question,
    TaskAnswer,
    TaskDescription,
    TaskOrder,
)
from fedstill.common.packing import content_bytes
from fedstill.common.registry import CODECS
from fedstill.common.scenario import codec_from
from fedstill.common.wire import check_protocol

SPACE = ("cat", "dog", "cow", "ant")


def wire(content: RecordDict) -> RecordDict:
    """As it comes out at the other end: real bytes in between."""
    return recorddict_from_proto(ProtoRecordDict.FromString(recorddict_to_proto(content).SerializeToString()))


def order(codec: str = "raw", samples: Any = (0, 1, 2), knowledge: Knowledge | None = None) -> Order:
    method = Method(
        "fedmd", {"temperature": 2.0, "digest-epochs": 3}, Training(epochs=3, precision="bf16"), codec_from(codec)
    )
    task = TaskOrder("digest", np.asarray(samples, dtype=np.int64), knowledge)
    return Order("digits-1", 4, 10, 2, 77, 3, method, {"pets": task})


def soft_labels(samples: Any, classes: tuple[str, ...] = SPACE, *, seed: int = 0, **others: Any) -> SoftLabels:
    values = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), len(samples)).astype(np.float32)
    return SoftLabels("categorical", classes, np.asarray(samples, dtype=np.int64), values, **others)


def assert_same(left: Knowledge | None, right: Knowledge | None, *, codec: str) -> None:
    """That what came is what was sent, less what the codec takes."""
    assert type(left) is type(right)
    if left is None or right is None:
        return
    assert left.header() == right.header()
    assert left.arrays().keys() == right.arrays().keys()
    for name, array in left.arrays().items():
        other = right.arrays()[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape)
        packer = codec_from(codec if name != "samples" else "raw")
        np.testing.assert_array_equal(other, packer.decode(packer.encode({name: array}))[name])


SAMPLES = st.one_of(
    st.integers(0, 6).map(lambda count: list(range(count))),
    st.lists(st.integers(0, 70_000), unique=True, max_size=6),
    st.just([2**31, 5, 2**40]),
)
METRICS = st.dictionaries(
    st.text(max_size=10),
    st.one_of(st.floats(), st.lists(st.floats(), max_size=3)),
    max_size=3,
)
CLASSES = st.permutations(SPACE).flatmap(lambda space: st.integers(1, 4).map(lambda count: tuple(space[:count])))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODECS.names()), SAMPLES, st.none() | SAMPLES, CLASSES)
def test_orders_round_trip(codec: str, samples: list[int], known: list[int] | None, classes: tuple[str, ...]) -> None:
    sent = order(codec, samples, None if known is None else soft_labels(known, classes, temperature=2.0))
    came = records.read_order(wire(records.write_order(sent)))
    for field in ("run", "round", "rounds", "attempt", "seed", "method"):
        assert getattr(came, field) == getattr(sent, field)
    assert came.tasks["pets"].samples.tolist() == samples
    assert came.tasks["pets"].samples.dtype == np.int64
    assert_same(sent.tasks["pets"].knowledge, came.tasks["pets"].knowledge, codec=codec)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODECS.names()), SAMPLES, st.booleans(), CLASSES, METRICS)
def test_answers_round_trip(
    codec: str, samples: list[int], all_of_them: bool, classes: tuple[str, ...], metrics: dict[str, Any]
) -> None:
    asked = order(codec, samples)
    told = soft_labels(samples if all_of_them else samples[::2], classes)
    sent = Answer("client-0", "digits-1", 4, 2, 3, {"pets": TaskAnswer("digest", 60, told, metrics)})
    came = records.read_answer(wire(records.write_answer(sent, asked)), asked)
    assert (came.client, came.run, came.round, came.attempt, came.version) == ("client-0", "digits-1", 4, 2, 3)
    task = came.tasks["pets"]
    assert (task.proxy_digest, task.examples) == ("digest", 60)
    np.testing.assert_equal(task.metrics, metrics)
    assert_same(told, task.knowledge, codec=codec)


@pytest.mark.parametrize("codec", [name for name in CODECS.names() if name != "argmax"])  # holds distributions only
def test_parameters_round_trip(codec: str) -> None:
    weights: dict[str, NDArray[Any]] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "scalar": np.array(0.5, dtype=np.float32),
        "steps": np.array(7),
        "none": np.zeros((0, 3), np.float32),
        "bytes": np.arange(3, dtype=np.uint8),
    }
    asked = order(codec)
    told = Parameters("mlp-small", weights)
    sent = Answer("client-0", "digits-1", 4, 2, 3, {"pets": TaskAnswer("digest", 60, told)})
    came = records.read_answer(wire(records.write_answer(sent, asked)), asked)
    assert_same(told, came.tasks["pets"].knowledge, codec="raw")  # these numbers fp16 has, too
    read = came.tasks["pets"].knowledge
    assert read is not None
    assert all(array.flags.writeable and array.flags.aligned for array in read.arrays().values())


def test_half_precision_refuses_what_it_cannot_hold() -> None:
    told = Parameters("m", {"w": np.array([70_000.0], np.float32)})
    with pytest.raises(KnowledgeError, match=r"expected at most 65504\.0 \(use codec 'raw'"):
        records.write_order(order("fp16", knowledge=told))


def test_sample_ids_travel_only_where_they_must() -> None:
    asked = order(samples=[4, 7, 300])
    assert _ids(records.write_order(asked), "order") == ("ordered", "uint8")
    assert _ids(records.write_order(order(samples=[300, 4])), "order") == ("listed", "uint16")
    assert _ids(records.write_order(order(samples=range(3))), "order") == ("first 3", None)
    same = Answer("c", "r", 1, 1, 0, {"pets": TaskAnswer("d", 1, soft_labels([4, 7, 300]))})
    assert _ids(records.write_answer(same, asked), "knowledge") == ("as-ordered", None)
    fewer = Answer("c", "r", 1, 1, 0, {"pets": TaskAnswer("d", 1, soft_labels([4, 7]))})
    assert _ids(records.write_answer(fewer, asked), "knowledge") == ("ordered", "uint8")


def _ids(content: RecordDict, whose: str) -> tuple[object, str | None]:
    head, arrays = content.config_records["task.pets"], content.array_records["knowledge.pets"]
    array = arrays.get(f"samples.{whose}")
    return head[f"samples.{whose}"], None if array is None else array.dtype


def test_clients_share_all_of_an_order_but_the_version() -> None:
    content = records.write_order(order())
    other = records.for_client(content, replace(order(), version=9))
    assert records.read_order(wire(other)).version == 9
    assert records.read_order(wire(content)).version == 3
    assert other["fedstill"] is content["fedstill"]


def test_content_bytes_is_the_size_on_the_wire() -> None:
    content = records.write_order(order(knowledge=soft_labels(range(100))))
    assert content_bytes(content) == len(recorddict_to_proto(content).SerializeToString())
    assert 1600 < content_bytes(content) < 2600  # 100 samples × 4 classes × 4 bytes


def test_descriptions_round_trip() -> None:
    task = TaskDescription("categorical", "image", SPACE, (1, 8, 8), "cnn-small", 9098, 60, "digest")
    sent = Description("client-0", "0.1.0", {"pets": task, "more": replace(task, input_shape=())})
    content = wire(introduction.write_description(sent))
    check_protocol(content)
    assert introduction.read_description(content) == sent


@pytest.mark.parametrize(
    ("key", "value"), [("classes", [1, 2]), ("input-shape", [1.5]), ("input-shape", ["x"]), ("parameters", -1)]
)
def test_a_malformed_description_is_refused(key: str, value: Any) -> None:
    task = TaskDescription("categorical", "image", SPACE, (1, 8, 8), "cnn-small", 9098, 60, "digest")
    content = introduction.write_description(Description("client-0", "0.1.0", {"pets": task}))
    content.config_records["task.pets"][key] = value
    with pytest.raises(KnowledgeError, match=f"'{key}' = "):
        introduction.read_description(content)


def test_another_protocol_is_refused_with_a_cure() -> None:
    content = introduction.write_question(Question("0.1.0", {}))
    content.config_records["fedstill"]["protocol"] = 1
    with pytest.raises(MismatchError, match=r"protocol 1: expected 5 \(install the same version") as caught:
        check_protocol(content)
    assert caught.value.reason is Reason.PROTOCOL
    with pytest.raises(KnowledgeError, match="expected a record 'fedstill'"):
        check_protocol(RecordDict())


@pytest.mark.parametrize("run", ["", ".", "..", "../elsewhere", "/etc", "a/b", "x" * 101])
def test_a_server_cannot_choose_a_folder_outside(run: str) -> None:
    with pytest.raises(KnowledgeError, match="expected the name of a folder"):
        records.read_order(records.write_order(replace(order(), run=run)))


@pytest.mark.parametrize(
    "method",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"algorithm": "fedmd", "options": 1, "training": {}}),
        json.dumps({"algorithm": "fedmd", "options": {}, "training": {"epochs": "many"}}),
        json.dumps({"algorithm": "fedmd", "options": {}, "training": {"magic": 1}}),
    ],
)
def test_a_malformed_method_is_refused(method: str) -> None:
    content = records.write_order(order())
    content.config_records["fedstill"]["method"] = method
    with pytest.raises(KnowledgeError, match="expected algorithm, options and training"):
        records.read_order(content)


@pytest.mark.parametrize("form", ["first 10000001", "first 99999999999999999999", "first -1", "first ²", "last", ""])
def test_samples_are_not_counted_out_on_a_strangers_word(form: str) -> None:
    content = records.write_order(order())
    content.config_records["task.pets"]["samples.order"] = form
    with pytest.raises(KnowledgeError) as caught:
        records.read_order(content)
    assert caught.value.reason is Reason.SAMPLES


def test_missing_records_are_refused() -> None:
    for name in ("fedstill", "client"):
        content = records.write_order(order())
        del content[name]
        with pytest.raises(KnowledgeError):
            records.read_order(content)


def test_records_of_other_kinds_are_left_alone() -> None:
    content = records.write_order(order())
    content["junk"] = MetricRecord({"x": 1.0})
    content["task.metrics"] = MetricRecord({"x": 1.0})
    content["knowledge.other"] = ArrayRecord({"x": Array(np.zeros(2))})
    content["other"] = ConfigRecord({"x": b"\xff"})
    assert list(records.read_order(wire(content)).tasks) == ["pets"]
