"""Whatever a client sends: an answer or a rejection with its reason, and nothing unforeseen on the way."""

from __future__ import annotations

import gc
import io
import logging
import struct
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.proto.error_pb2 import Error as ProtoError
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata as ProtoMetadata
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedstill.common import records
from fedstill.common.algorithm import asked
from fedstill.common.algorithms.dsfl import DSFL
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.codecs.raw import Raw
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Features, Knowledge, Parameters, Relations, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.sides import ClientInfo
from fedstill.common.task import TaskSpec
from fedstill.server.admission import LONGEST_DETAIL, Gate, Rejection, TaskGate, declared_bytes, last_line

SPACE = ("cat", "dog", "cow")
OWN = ("cat", "cow")
SAMPLES = np.array([2, 5, 9])
METADATA = ProtoMetadata(message_type="train.round", ttl=60)
WEIGHTS: dict[str, Any] = {"w": np.ones((2, 3), np.float32), "steps": np.array(7)}
ORDER = Order("run", 4, 10, 2, 1, 3, Method("fedmd", {}, Training(), Raw()), {"pets": TaskOrder("digest", SAMPLES)})
LABELS = SoftLabels("categorical", OWN, SAMPLES, np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], np.float32))


def gate(exchange: str = "soft-labels", **others: Any) -> Gate:
    info = ClientInfo("client-0", "mlp-small", 100, 60, OWN)
    spec = TaskSpec("pets", "categorical", "image", SPACE, (1, 8, 8))
    layout = Parameters("m", WEIGHTS).layout()
    tasks = {"pets": TaskGate(spec, exchange, "digest", layout, {"client-0": info}, **{"model": "m"} | others)}
    return Gate("client-0", ORDER, tasks, largest=100_000)


def answer(knowledge: Knowledge | None = LABELS, **others: Any) -> Answer:
    task = TaskAnswer("digest", 60, knowledge, {"trained.accuracy": 0.5, "trained.class-accuracy": [0.5, float("nan")]})
    return replace(Answer("client-0", "run", 4, 2, 3, {"pets": task}), **others)


def message(content: RecordDict) -> Message:
    """As Flower delivers it: real bytes in between."""
    proto = ProtoMessage(metadata=METADATA, content=recorddict_to_proto(content))
    return message_from_proto(ProtoMessage.FromString(proto.SerializeToString()))


def error(reason: str = "") -> Message:
    return message_from_proto(ProtoMessage(metadata=METADATA, error=ProtoError(code=0, reason=reason)))


def content(knowledge: Knowledge | None = LABELS, **others: Any) -> RecordDict:
    return records.write_answer(answer(knowledge, **others), ORDER)


@pytest.fixture(autouse=True)
def _nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, "fedstill.server.admission")
    yield
    assert [record.exc_text or record.message for record in caplog.records] == []


def refused(sent: RecordDict, by: Gate | None = None) -> Rejection:
    admitted = (by or gate()).admit(message(sent))
    assert isinstance(admitted, Rejection)
    assert admitted.client == "client-0"
    assert 0 < len(admitted.detail) <= LONGEST_DETAIL
    return admitted


def reason(sent: RecordDict, by: Gate | None = None) -> Reason:
    return refused(sent, by).reason


def test_a_good_answer_is_admitted() -> None:
    admitted = gate().admit(message(content()))
    assert isinstance(admitted, Answer)
    told = admitted.tasks["pets"].knowledge
    assert isinstance(told, SoftLabels)
    np.testing.assert_array_equal(told.values, LABELS.values)


def test_a_part_of_the_classes_and_samples_is_enough() -> None:
    part = SoftLabels("categorical", ("cow",), np.array([9]), np.ones((1, 1), np.float32))
    assert isinstance(gate().admit(message(content(part))), Answer)


def test_parameters_and_nothing() -> None:
    assert isinstance(gate("parameters").admit(message(content(Parameters("m", WEIGHTS)))), Answer)
    assert reason(content(Parameters("n", WEIGHTS)), gate("parameters")) is Reason.KIND
    assert isinstance(gate("nothing").admit(message(content(None))), Answer)


def test_the_envelope() -> None:
    assert reason(content(client="client-1")) is Reason.SENDER
    assert reason(content(run="other")) is Reason.STALE
    assert reason(content(round=3)) is Reason.STALE
    assert reason(content(attempt=1)) is Reason.STALE
    assert reason(content(tasks={})) is Reason.TASK
    twice = gate().admit(message(content()), answered=True)
    assert isinstance(twice, Rejection)
    assert twice.reason is Reason.DUPLICATE


def test_an_error_of_the_client_gives_the_last_line_of_its_traceback() -> None:
    admitted = gate().admit(error("Traceback\n  File x\nDataError: no data\n\n"))
    assert admitted == Rejection("client-0", Reason.CLIENT_ERROR, "DataError: no data")
    silent = gate().admit(error())
    assert silent == Rejection("client-0", Reason.CLIENT_ERROR, "no reason given")
    assert last_line("") == ""


def test_a_reply_that_cannot_be_read_is_held_by_nothing_once_it_is_rejected() -> None:
    def unreadable() -> KnowledgeError:
        try:
            raise KnowledgeError("objects of 3 ids", "expected a message", reason=Reason.TOO_LARGE)
        except KnowledgeError as found:
            return found

    fault = unreadable()
    reply = error("objects of 3 ids: expected a message")
    told = gate().admit(reply, fault=fault)
    assert isinstance(told, Rejection)
    assert (told.reason, told.detail) == (Reason.TOO_LARGE, "objects of 3 ids: expected a message")
    held = weakref.ref(reply)
    gc.disable()
    try:
        del reply, fault
        assert held() is None
    finally:
        gc.enable()
    second = gate().admit(error(), answered=True, fault=unreadable())
    assert isinstance(second, Rejection)
    assert second.reason is Reason.DUPLICATE


def test_what_a_stranger_says_is_fit_to_show() -> None:
    said = gate().admit(error("\x1b[31mred\x07\t of [/all] \u202e" + "x" * 10**6))
    assert isinstance(said, Rejection)
    assert said.detail.startswith("\ufffd[31mred\ufffd of [/all] \ufffdxxx")
    assert len(said.detail) == LONGEST_DETAIL


def change(record: str, key: str, value: Any) -> RecordDict:
    sent = content()
    sent.config_records[record][key] = value
    return sent


@pytest.mark.parametrize(
    ("record", "key", "value", "expected"),
    [
        ("fedstill", "protocol", 1, Reason.PROTOCOL),
        ("fedstill", "protocol", b"1", Reason.PROTOCOL),
        ("fedstill", "client", 7, Reason.MALFORMED),
        ("fedstill", "client", "x" * 50_000, Reason.SENDER),
        ("fedstill", "client", "x" * 200_000, Reason.TOO_LARGE),
        ("fedstill", "round", -1, Reason.MALFORMED),
        ("fedstill", "round", True, Reason.MALFORMED),
        ("fedstill", "round", 4.0, Reason.MALFORMED),
        ("fedstill", "version", "3", Reason.MALFORMED),
        ("task.pets", "proxy-digest", "other", Reason.PROXY),
        ("task.pets", "num-examples", 0, Reason.RANGE),
        ("task.pets", "num-examples", -5, Reason.MALFORMED),
        ("task.pets", "kind", "gossip", Reason.MALFORMED),
        ("task.pets", "kind", 7, Reason.MALFORMED),
        ("task.pets", "header.output", "multi-label", Reason.KIND),
        ("task.pets", "header.output", "no kind", Reason.MALFORMED),
        ("task.pets", "header.form", "logits", Reason.KIND),
        ("task.pets", "header.form", "votes", Reason.MALFORMED),
        ("task.pets", "header.temperature", 2.0, Reason.KIND),
        ("task.pets", "header.temperature", float("nan"), Reason.RANGE),
        ("task.pets", "header.temperature", 0.0, Reason.RANGE),
        ("task.pets", "header.temperature", "hot", Reason.MALFORMED),
        ("task.pets", "header.classes", ["cat", "dog"], Reason.CLASSES),
        ("task.pets", "header.classes", ["cat", "elk"], Reason.CLASSES),
        ("task.pets", "header.classes", ["cat", "cat"], Reason.CLASSES),
        ("task.pets", "header.classes", ["cat"], Reason.SHAPE),
        ("task.pets", "header.classes", [1, 2], Reason.CLASSES),
        ("task.pets", "header.classes", [b"a", b"b"], Reason.CLASSES),
        ("task.pets", "header.classes", "ab", Reason.MALFORMED),
        ("task.pets", "samples.knowledge", "first 3", Reason.SAMPLES),
        ("task.pets", "samples.knowledge", "first 9999999", Reason.SAMPLES),
        ("task.pets", "samples.knowledge", "first " + "9" * 5000, Reason.SAMPLES),
        ("task.pets", "samples.knowledge", "listed", Reason.SAMPLES),
        ("task.pets", "samples.knowledge", "ever so many", Reason.SAMPLES),
        ("task.pets", "samples.knowledge", 3, Reason.MALFORMED),
    ],
)
def test_a_wrong_value_in_a_header(record: str, key: str, value: Any, expected: Reason) -> None:
    assert reason(change(record, key, value)) is expected


@pytest.mark.parametrize("key", ["fedstill", "task.pets", "knowledge.pets"])
def test_a_missing_record(key: str) -> None:
    sent = content()
    del sent[key]
    assert reason(sent) is {"task.pets": Reason.TASK}.get(key, Reason.MALFORMED)


def test_junk_records() -> None:
    sent = content()
    sent["task.other"] = ConfigRecord({"x": 1})
    assert reason(sent) is Reason.TASK
    sent = content()
    sent["junk"] = ArrayRecord({"x": Array(np.zeros(100_000))})
    assert reason(sent) is Reason.TOO_LARGE
    for record in (MetricRecord({"x": 1.0}), ArrayRecord()):
        sent = content()
        del sent["fedstill"]
        sent["fedstill"] = record
        assert reason(sent) is Reason.MALFORMED


def test_measures_are_bounded() -> None:
    for measures in ({"x": [0.0] * 10_001}, {f"{number}": 0.0 for number in range(10_001)}, {"n" * 101: 0.0}):
        sent = content()
        sent["metrics.pets"] = MetricRecord(dict(measures))
        assert reason(sent) is Reason.TOO_LARGE
    assert reason(content(tasks={"pets": replace(answer().tasks["pets"], metrics={"n" * 200_000: 1.0})})) is (
        Reason.TOO_LARGE
    )


def test_thousands_of_tasks_are_refused_at_the_first() -> None:
    sent = RecordDict({f"task.{number}": ConfigRecord({"x": 1}) for number in range(3000)})
    sent["fedstill"] = content()["fedstill"]
    assert reason(sent) is Reason.TASK


def labels(**others: Any) -> SoftLabels:
    return replace(LABELS, **others)


@pytest.mark.parametrize(
    ("knowledge", "expected"),
    [
        (None, Reason.KIND),
        (Parameters("m", WEIGHTS), Reason.KIND),
        (labels(samples=np.array([2, 5, 8])), Reason.SAMPLES),
        (labels(samples=SAMPLES[:0], values=LABELS.values[:0]), Reason.SAMPLES),
        (labels(values=np.repeat(LABELS.values[:, None], 2, axis=1)), Reason.SHAPE),
        (SoftLabels("categorical", ("dog",), SAMPLES[:1], np.ones((1, 1), np.float32)), Reason.CLASSES),
    ],
)
def test_good_knowledge_that_was_not_asked_for(knowledge: Knowledge | None, expected: Reason) -> None:
    assert reason(content(knowledge)) is expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"w": WEIGHTS["w"]}, Reason.SHAPE),
        (WEIGHTS | {"extra": np.zeros(1)}, Reason.SHAPE),
        (WEIGHTS | {"w": np.ones((3, 2), np.float32)}, Reason.SHAPE),
        (WEIGHTS | {"w": np.ones((2, 3), np.int64)}, Reason.SHAPE),
        (WEIGHTS | {"w": np.ones((2, 3), np.float64)}, Reason.SHAPE),
        (WEIGHTS | {"steps": np.array([7])}, Reason.SHAPE),
    ],
)
def test_weights_of_another_model(weights: dict[str, Any], expected: Reason) -> None:
    assert reason(content(Parameters("m", weights)), gate("parameters")) is expected


def test_a_method_says_what_it_asks_for() -> None:
    assert asked(DSFL(temperature=0.5)) == ("probabilities", 1.0)
    hot = asked(FedMD(temperature=2.0, scores="logits"))
    assert hot == ("logits", 2.0)
    assert reason(content(), gate(asked=hot)) is Reason.KIND
    sent = content(labels(form="logits", temperature=2.0))
    assert isinstance(gate(asked=hot).admit(message(sent)), Answer)


FEATURES = Features(SAMPLES, np.array([[1, 2], [-3, 4], [5, 6]], np.float32))
RELATIONS = Relations(SAMPLES, np.array([[0, 0.5, 1], [0.5, 0, 1.5], [1, 1.5, 0]], np.float32))


@pytest.mark.parametrize("sent", [FEATURES, RELATIONS], ids=lambda sent: str(sent.kind))
def test_relations_and_features(sent: Features | Relations) -> None:
    admitted = gate(sent.kind).admit(message(content(sent)))
    assert isinstance(admitted, Answer)
    told = admitted.tasks["pets"].knowledge
    assert isinstance(told, type(sent))
    np.testing.assert_array_equal(told.values, sent.values)
    np.testing.assert_array_equal(told.samples, SAMPLES)
    # What a method did not ask for:
    assert reason(content(sent)) is Reason.KIND
    assert reason(content(), gate(sent.kind)) is Reason.KIND
    # The common space and the mean distances are about samples that everybody answered.
    for ids in ([5, 2, 9], [2, 5, 8], [0, 1, 2]):
        assert reason(content(replace(sent, samples=np.array(ids))), gate(sent.kind)) is Reason.SAMPLES
    two = np.array([[0, 1], [1, 0]], np.float32)
    assert reason(content(replace(sent, samples=SAMPLES[:2], values=two)), gate(sent.kind)) is Reason.SAMPLES


@pytest.mark.parametrize(
    ("sent", "values", "expected"),
    [
        (FEATURES, np.full((3, 2), np.nan, np.float32), Reason.NOT_FINITE),
        (FEATURES, np.full((3, 2), 1e30, np.float32), Reason.RANGE),
        (FEATURES, np.zeros((3, 5000), np.float32), Reason.SHAPE),
        (FEATURES, np.zeros((3, 0), np.float32), Reason.SHAPE),
        (FEATURES, np.zeros((4, 2), np.float32), Reason.SHAPE),
        (FEATURES, np.zeros((3, 2), np.float64), Reason.TYPE),
        (RELATIONS, np.full((3, 3), np.inf, np.float32), Reason.NOT_FINITE),
        (RELATIONS, RELATIONS.values * 100, Reason.RANGE),
        (RELATIONS, np.triu(RELATIONS.values) * 2, Reason.RANGE),
        (RELATIONS, -RELATIONS.values, Reason.RANGE),
        (RELATIONS, np.eye(3, dtype=np.float32), Reason.RANGE),
        (RELATIONS, RELATIONS.values[:, :2].copy(), Reason.SHAPE),
        (RELATIONS, np.array(1, np.float32), Reason.SHAPE),
    ],
)
def test_hostile_relations_and_features(
    sent: Features | Relations, values: np.ndarray[Any, Any], expected: Reason
) -> None:
    hostile = content(sent)
    hostile.array_records["knowledge.pets"]["values"] = Array(values)
    assert reason(hostile, gate(sent.kind)) is expected


def put(data: bytes | np.ndarray[Any, Any], name: str = "values") -> RecordDict:
    sent = content()
    raw = data if isinstance(data, bytes) else Array(data).data
    sent.array_records["knowledge.pets"][name] = Array("float32", (3, 2), "numpy.ndarray", raw)
    return sent


def npy(header: str, data: bytes = b"", *, version: bytes = b"\x01\x00") -> bytes:
    text = (header + "\n").encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


VALUES = LABELS.values


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Reason.MALFORMED),
        (b"\x93NUMPY", Reason.MALFORMED),
        (b"\x93NUMPY\x01\x00\xff\xff", Reason.MALFORMED),
        (saved(np.array([object()] * 6)), Reason.TYPE),
        (saved(np.zeros((3, 2), dtype=[("x", "f4")])), Reason.MALFORMED),
        (saved(np.array([["a", "b"]] * 3)), Reason.TYPE),
        (saved(np.zeros((3, 2), complex)), Reason.TYPE),
        (saved(np.zeros((3, 2), bool)), Reason.TYPE),
        (saved(np.zeros((3, 2), ">f4")), Reason.TYPE),
        (saved(np.asfortranarray(VALUES)), Reason.MALFORMED),
        (VALUES.astype(np.float64), Reason.TYPE),
        (VALUES.astype(np.float16), Reason.TYPE),
        (np.zeros((3, 2), np.int64), Reason.TYPE),
        (VALUES[:2], Reason.SHAPE),
        (VALUES.T.copy(), Reason.SHAPE),
        (VALUES.ravel(), Reason.SHAPE),
        (VALUES[..., None], Reason.SHAPE),
        (np.array(1, np.float32), Reason.SHAPE),
        (saved(VALUES)[:-1], Reason.SHAPE),
        (saved(VALUES) + b"\x00", Reason.SHAPE),
        (saved(VALUES)[:40], Reason.MALFORMED),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000,), }", b"1234"), Reason.SHAPE),
        (npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'999999999999, ' * 31}), }}"), Reason.SHAPE),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999, 999999999999), }"), Reason.SHAPE),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2), }"), Reason.SHAPE),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -2), }", VALUES.tobytes()), Reason.MALFORMED),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, }", VALUES.tobytes()), Reason.MALFORMED),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 2L), }", VALUES.tobytes()), Reason.MALFORMED),
        (npy("(" * 5000), Reason.MALFORMED),
        (npy("-" * 9000 + "1"), Reason.MALFORMED),
        (npy("'\\d'"), Reason.MALFORMED),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }", VALUES.tobytes(), version=b"\x02\x00"),
         Reason.MALFORMED),
        (np.array([[np.nan, 1], [1, 0], [0, 1]], np.float32), Reason.NOT_FINITE),
        (np.array([[np.inf, 1], [1, 0], [0, 1]], np.float32), Reason.NOT_FINITE),
        (np.array([[1e30, 1], [1, 0], [0, 1]], np.float32), Reason.RANGE),
        (np.array([[0.5, 0.4], [1, 0], [0, 1]], np.float32), Reason.RANGE),
        (np.array([[1.0001, -0.0001], [1, 0], [0, 1]], np.float32), Reason.RANGE),
    ],
)  # fmt: skip
def test_hostile_arrays(data: bytes | np.ndarray[Any, Any], expected: Reason) -> None:
    found = reason(put(data))
    # Fewer rows than samples can be noticed at either.
    assert found is expected or {found, expected} <= {Reason.SHAPE, Reason.SAMPLES}


def test_denormals_are_numbers_too() -> None:
    sent = put(np.array([[1, 1e-42], [1, 1e-45], [0, 1]], np.float32))
    assert isinstance(gate().admit(message(sent)), Answer)


@pytest.mark.parametrize("ids", [[2, 5, 5], [2, 5, 2**63 + 1], [2, 5, 10], [2, 5]])
def test_hostile_sample_ids(ids: list[int]) -> None:
    sent = change("task.pets", "samples.knowledge", "listed")
    sent.array_records["knowledge.pets"]["samples.knowledge"] = Array(np.array(ids, np.uint64))
    assert reason(sent) in (Reason.SAMPLES, Reason.SHAPE)
    sent.array_records["knowledge.pets"]["samples.knowledge"] = Array(-np.array([2, 5, 9]))
    assert reason(sent) is Reason.SAMPLES
    sent.array_records["knowledge.pets"]["samples.knowledge"] = Array(np.array([[2, 5, 9]], np.uint8))
    assert reason(sent) is Reason.SAMPLES


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 400), st.one_of(st.integers(0, 255), st.sampled_from(b"'(){},L-0\\ \n"))), max_size=4
)


def fuzzed(sent: RecordDict, array: str, flips: list[tuple[int, int]], cut: int) -> RecordDict:
    record = sent.array_records["knowledge.pets"]
    data = bytearray(record[array].data)
    for place, byte in flips:
        data[place % len(data)] = byte
    record[array] = Array("float32", (1,), "numpy.ndarray", bytes(data[: len(data) - cut]))
    return sent


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MUTATIONS, st.sampled_from([0, 0, 0, 1, 30, 100]))
def test_mutated_soft_labels(flips: list[tuple[int, int]], cut: int) -> None:
    admitted = gate().admit(message(fuzzed(content(), "values", flips, cut)))
    if isinstance(admitted, Answer):
        told = admitted.tasks["pets"].knowledge
        assert isinstance(told, SoftLabels)
        assert ((told.values >= 0) & (told.values <= 1)).all()
    else:
        assert admitted.reason in set(Reason)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MUTATIONS, st.sampled_from([0, 0, 0, 1, 30, 100]), st.sampled_from(["w", "steps"]))
def test_mutated_parameters(flips: list[tuple[int, int]], cut: int, name: str) -> None:
    admitted = gate("parameters").admit(message(fuzzed(content(Parameters("m", WEIGHTS)), name, flips, cut)))
    if isinstance(admitted, Answer):
        told = admitted.tasks["pets"].knowledge
        assert isinstance(told, Parameters)
        assert told.layout() == Parameters("m", WEIGHTS).layout()


SCALARS: list[Callable[[], st.SearchStrategy[Any]]] = [st.booleans, lambda: st.integers(-(2**63), 2**63 - 1), st.floats]
VALUE = st.one_of(
    *(make() for make in SCALARS),
    *(st.lists(make(), max_size=3) for make in SCALARS),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.text(max_size=3), max_size=3),
)
KEYS = [
    *(("fedstill", key) for key in ("protocol", "run", "round", "attempt", "client", "version")),
    *(("task.pets", key) for key in ("proxy-digest", "num-examples", "kind", "samples.knowledge")),
    *(("task.pets", f"header.{key}") for key in ("output", "classes", "temperature", "form", "surprise")),
]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUE), min_size=1, max_size=3))
def test_any_values_in_headers(changes: list[tuple[tuple[str, str], Any]]) -> None:
    sent = content()
    for (record, key), value in changes:
        sent.config_records[record][key] = value
    assert isinstance(gate().admit(message(sent)), Answer | Rejection)


def test_the_unforeseen_is_a_rejection_and_leaves_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def has_error(self) -> bool:
            return False

        @property
        def content(self) -> RecordDict:
            raise RecursionError("deep")

    broken: Any = Broken()
    assert gate().admit(broken) == Rejection("client-0", Reason.MALFORMED, "RecursionError: deep")
    assert "unforeseen" in caplog.text
    caplog.clear()


def test_declared_bytes_counts_keys_texts_lists_and_arrays() -> None:
    sent = RecordDict(
        {
            "a": ConfigRecord({"key": "four", "list": ["ab", "c"], "n": 1}),  # 3 + 4, 4 + 3, 1 + 8
            "b": MetricRecord({"m": [1.0, 2.0]}),  # 1 + 16
            "c": ArrayRecord({"x": Array("f", (1,), "numpy.ndarray", b"12345")}),  # 1 + 5
        }
    )
    assert declared_bytes(sent) == 23 + 17 + 6
