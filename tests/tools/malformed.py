"""Malformed contributions of every kind that we could think of, by sites that introduce themselves honestly.

A kind makes one reply out of a sound one, seeded by the site and the step. What it makes is malformed for certain: a
flipped bit in a measure, say, gives another sound answer, which nobody could tell from an honest one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from numpy.typing import NDArray

from fedstill.common import introduction, records
from fedstill.common.errors import Reason
from fedstill.common.knowledge import Features, Knowledge, Parameters, SoftLabels
from fedstill.common.messages import Answer, Order, Refusal
from fedstill.common.packing import HEAD, packed


@dataclass(frozen=True, slots=True)
class Thing:
    """An object of a message, as Flower lays it out, and what is below it."""

    id: str
    tree: ObjectTree
    objects: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Raw:
    """A reply as objects that Flower itself would not make; some may not be sent."""

    root: Thing
    withheld: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Sound:
    """What a kind of malformed reply is made of.

    Attributes:
        site: who answers.
        message: what it was asked, with the content.
        order: what that says.
        task: name of the order's task.
        answer: a sound answer.
        content: the same as records.
        before: the site's own answer to another order; None at the first.
        others: what other sites say.
        rng: for whatever is left to chance.
    """

    site: str
    message: Message
    order: Order
    task: str
    answer: Answer
    content: RecordDict
    before: RecordDict | None
    others: Mapping[str, RecordDict]
    rng: np.random.Generator

    @property
    def labels(self) -> SoftLabels:
        """The answer's soft labels."""
        told = self.answer.tasks[self.task].knowledge
        assert isinstance(told, SoftLabels)
        return told

    @property
    def key(self) -> str:
        """Name of an array that carries values, in whatever codec."""
        return max(self.arrays, key=lambda name: len(self.arrays[name].data))

    @property
    def arrays(self) -> ArrayRecord:
        """The arrays of the knowledge."""
        return self.content.array_records[f"knowledge.{self.task}"]

    def written(self, **others: Any) -> RecordDict:
        """The answer with something else in its head."""
        return records.write_answer(replace(self.answer, **others), self.order)

    def telling(self, knowledge: Knowledge | None, **others: Any) -> RecordDict:
        """The answer with something else about the task."""
        task = replace(self.answer.tasks[self.task], knowledge=knowledge, **others)
        return self.written(tasks={self.task: task})

    def with_bytes(self, data: bytes) -> RecordDict:
        """The answer with other bytes as its values."""
        array = self.arrays[self.key]
        self.arrays[self.key] = Array(array.dtype, array.shape, array.stype, data)
        return self.content

    def with_values(self, values: NDArray[Any]) -> RecordDict:
        """The answer with other numbers as its values, past every check of the sender."""
        self.arrays["values"] = Array(np.asarray(values, order="C"))
        return self.content

    def with_setting(self, record: str, key: str, value: Any) -> RecordDict:
        """The answer with another value in one of its records; without it for None."""
        found = self.content.config_records[record]
        if value is None:
            del found[key]
        else:
            found[key] = value
        return self.content


Reply = RecordDict | Error | Raw
Make = Callable[[Sound], Reply]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of malformed reply.

    Attributes:
        name: of it.
        make: makes one.
        reasons: for which it may be rejected.
        when: "any" step; a "round", in which there is knowledge; "raw": a round whose codec leaves arrays as they are;
            "silent": it never comes whole, so that the server waits for it until the deadline.
    """

    name: str
    make: Make
    reasons: frozenset[Reason]
    when: str


KINDS: dict[str, Kind] = {}


def kind(*reasons: Reason, when: str = "round") -> Callable[[Make], Make]:
    """Register a kind by its function's name."""

    def register(make: Make) -> Make:
        name = make.__name__.replace("_", "-")
        KINDS[name] = Kind(name, make, frozenset(reasons), when)
        return make

    return register


# Bytes ---------------------------------------------------------------------------------------------------------------


@kind(Reason.MALFORMED)
def random_bytes_as_array(sound: Sound) -> Reply:
    return sound.with_bytes(sound.rng.bytes(int(sound.rng.integers(0, 5000))))


@kind(Reason.MALFORMED, Reason.SHAPE)
def truncated_array(sound: Sound) -> Reply:
    data = sound.arrays[sound.key].data
    return sound.with_bytes(data[: int(sound.rng.integers(0, len(data)))])


@kind(Reason.SHAPE)
def longer_array(sound: Sound) -> Reply:
    return sound.with_bytes(sound.arrays[sound.key].data + sound.rng.bytes(int(sound.rng.integers(1, 100))))


@kind(Reason.MALFORMED, Reason.SHAPE, Reason.TYPE)
def bit_flipped_array_header(sound: Sound) -> Reply:
    data = bytearray(sound.arrays[sound.key].data)
    # Magic, version and the dictionary's keys; blanks at the end are filled in by anybody.
    data[int(sound.rng.integers(0, 8))] ^= 1 << int(sound.rng.integers(0, 8))
    return sound.with_bytes(bytes(data))


@kind(Reason.NOT_FINITE, Reason.RANGE, when="raw")
def random_bytes_as_numbers(sound: Sound) -> Reply:
    values = sound.labels.values
    found = np.frombuffer(sound.rng.bytes(values.nbytes), np.float32).reshape(values.shape)
    return sound.with_values(found)


@kind(Reason.RANGE, when="raw")
def bit_flipped_signs(sound: Sound) -> Reply:
    values = sound.labels.values.copy()
    row = int(sound.rng.integers(len(values)))
    values[row, int(values[row].argmax())] *= -1
    return sound.with_values(values)


@kind(Reason.SHAPE)
def declared_terabytes(sound: Sound) -> Reply:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**12}, 10), }}".ljust(117) + "\n"
    return sound.with_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(40))


@kind(Reason.SHAPE, Reason.MALFORMED)
def declared_overflow(sound: Sound) -> Reply:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, {2**40}, 0, {2**30}), }}".ljust(117) + "\n"
    return sound.with_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())


@kind(Reason.TYPE, Reason.MALFORMED)
def pickled_objects(sound: Sound) -> Reply:
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + "\n"
    return sound.with_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\x80\x04N.")


@kind(Reason.TOO_LARGE)
def too_many_bytes(sound: Sound) -> Reply:
    return sound.with_bytes(sound.rng.bytes(2**20 + 2**18))


# Packing -------------------------------------------------------------------------------------------------------------


def _packed(sound: Sound, data: bytes) -> RecordDict:
    head = {key: sound.content.config_records[HEAD][key] for key in ("protocol", "run")}
    return RecordDict({HEAD: ConfigRecord({**head, "packed": data})})


def _own_packing(sound: Sound) -> bytes:
    whole = packed(sound.content, apart=[f"knowledge.{sound.task}"])
    data = whole.config_records[HEAD]["packed"]
    assert isinstance(data, bytes)
    return data


@kind(Reason.MALFORMED, Reason.TOO_LARGE, when="any")
def packing_of_random_bytes(sound: Sound) -> Reply:
    return _packed(sound, sound.rng.bytes(int(sound.rng.integers(1, 400))))


@kind(Reason.TOO_LARGE, when="any")
def truncated_packing(sound: Sound) -> Reply:
    data = _own_packing(sound)
    return _packed(sound, data[: int(sound.rng.integers(0, len(data) - 1))])


@kind(Reason.MALFORMED, when="any")
def bit_flipped_packing(sound: Sound) -> Reply:
    data = bytearray(_own_packing(sound))
    data[0] |= 0b110  # the block's type, to the one that there is not
    data[int(sound.rng.integers(1, len(data)))] ^= 1 << int(sound.rng.integers(0, 8))
    return _packed(sound, bytes(data))


@kind(Reason.TOO_LARGE, when="any")
def compressed_bomb(sound: Sound) -> Reply:
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return _packed(sound, press.compress(bytes(2**26)) + press.flush())


@kind(Reason.MALFORMED, when="any")
def packing_of_noise(sound: Sound) -> Reply:
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return _packed(sound, press.compress(b"\xff" + sound.rng.bytes(1000)) + press.flush())


# Numbers -------------------------------------------------------------------------------------------------------------


def _with_one(sound: Sound, value: float) -> Reply:
    values = sound.labels.values.copy()
    values[tuple(int(sound.rng.integers(size)) for size in values.shape)] = value
    return sound.with_values(values)


@kind(Reason.NOT_FINITE, when="raw")
def not_a_number(sound: Sound) -> Reply:
    return _with_one(sound, np.nan)


@kind(Reason.NOT_FINITE, Reason.RANGE, when="raw")
def infinity(sound: Sound) -> Reply:
    return _with_one(sound, float(sound.rng.choice([np.inf, -np.inf])))


@kind(Reason.RANGE, when="raw")
def a_nonillion(sound: Sound) -> Reply:
    return _with_one(sound, 1e30)


@kind(Reason.RANGE, when="raw")
def negative(sound: Sound) -> Reply:
    return _with_one(sound, -0.5)


@kind(Reason.RANGE, when="raw")
def sums_that_are_not_one(sound: Sound) -> Reply:
    return sound.with_values(sound.labels.values * np.float32(sound.rng.choice([0.0, 0.5, 1.1, 2.0])))


# Shapes, classes, samples ------------------------------------------------------------------------------------------


@kind(Reason.SHAPE, Reason.SAMPLES, Reason.TYPE, Reason.RANGE, when="raw")
def another_shape(sound: Sound) -> Reply:
    values = sound.labels.values
    shapes = [values.T, values[..., None], values.ravel(), values[:0], values[:, :-1], values[:-1], values[0, 0]]
    return sound.with_values(shapes[int(sound.rng.integers(len(shapes)))])


@kind(Reason.TYPE, when="raw")
def another_type(sound: Sound) -> Reply:
    return sound.with_values(sound.labels.values.astype(str(sound.rng.choice(["f8", "i4", "u1", "f2"]))))


@kind(Reason.CLASSES)
def unknown_classes(sound: Sound) -> Reply:
    classes = tuple(f"no-{name}" for name in sound.labels.classes)
    return sound.telling(replace(sound.labels, classes=classes))


@kind(Reason.SHAPE, Reason.MALFORMED)
def fewer_classes_than_columns(sound: Sound) -> Reply:
    return sound.with_setting(f"task.{sound.task}", "header.classes", list(sound.labels.classes[:-1]))


@kind(Reason.SHAPE, Reason.CLASSES, Reason.MALFORMED)
def more_classes_than_columns(sound: Sound) -> Reply:
    return sound.with_setting(f"task.{sound.task}", "header.classes", [str(n) for n in range(5000)])


@kind(Reason.CLASSES)
def a_class_twice(sound: Sound) -> Reply:
    names = sound.labels.classes
    return sound.with_setting(f"task.{sound.task}", "header.classes", [names[0], *names[:-1]])


@kind(Reason.SAMPLES)
def samples_nobody_asked_for(sound: Sound) -> Reply:
    return sound.telling(replace(sound.labels, samples=sound.labels.samples + 10_000))


@kind(Reason.SAMPLES, Reason.MALFORMED, Reason.TOO_LARGE)
def samples_in_no_known_way(sound: Sound) -> Reply:
    ways = ["first 99999999999", "first -1", "", "all", "first " + "9" * 300, "as-ordered 7"]
    return sound.with_setting(f"task.{sound.task}", "samples.knowledge", ways[int(sound.rng.integers(len(ways)))])


# Records -------------------------------------------------------------------------------------------------------------


@kind(Reason.MALFORMED, when="any")
def no_records(sound: Sound) -> Reply:
    return RecordDict()


@kind(Reason.MALFORMED, when="any")
def no_head(sound: Sound) -> Reply:
    del sound.content[HEAD]
    return sound.content


@kind(Reason.TASK, when="any")
def no_task(sound: Sound) -> Reply:
    del sound.content[f"task.{sound.task}"]
    return sound.content


@kind(Reason.MALFORMED, Reason.SHAPE, Reason.SAMPLES)
def no_arrays(sound: Sound) -> Reply:
    del sound.content[f"knowledge.{sound.task}"]
    return sound.content


@kind(Reason.KIND)
def no_knowledge(sound: Sound) -> Reply:
    return sound.telling(None)


@kind(Reason.MALFORMED, when="any")
def a_missing_word(sound: Sound) -> Reply:
    words = ["client", "run", "round", "attempt", "version"]
    return sound.with_setting(HEAD, words[int(sound.rng.integers(len(words)))], None)


@kind(Reason.MALFORMED, when="any")
def a_word_of_another_type(sound: Sound) -> Reply:
    words = [("client", 7), ("round", "one"), ("version", -1), ("attempt", True), ("run", b"x"), ("round", [1])]
    return sound.with_setting(HEAD, *words[int(sound.rng.integers(len(words)))])


@kind(Reason.MALFORMED, when="any")
def examples_of_another_type(sound: Sound) -> Reply:
    values = ["many", -5, 1.5, True, [60]]
    return sound.with_setting(f"task.{sound.task}", "num-examples", values[int(sound.rng.integers(len(values)))])


@kind(Reason.MALFORMED, when="any")
def unknown_records(sound: Sound) -> Reply:
    sound.content["surprise"] = ConfigRecord({"x": sound.rng.bytes(10)})
    return sound.content


@kind(Reason.MALFORMED, when="any")
def records_of_another_kind(sound: Sound) -> Reply:
    key = f"{sound.rng.choice(['knowledge', 'metrics'])}.{sound.task}"
    del sound.content[key]
    sound.content[key] = ConfigRecord({"trained.accuracy": "very good"})
    return sound.content


@kind(Reason.TOO_LARGE, when="any")
def too_many_measures(sound: Sound) -> Reply:
    sound.content[f"metrics.{sound.task}"] = MetricRecord({"x": [0.5] * 10_001})
    return sound.content


@kind(Reason.TOO_LARGE, when="any")
def measures_with_long_names(sound: Sound) -> Reply:
    sound.content[f"metrics.{sound.task}"] = MetricRecord({"x" * 5000: 0.5})
    return sound.content


# What it is about ----------------------------------------------------------------------------------------------------


@kind(Reason.STALE, when="any")
def another_round(sound: Sound) -> Reply:
    return sound.written(round=sound.order.round + int(sound.rng.choice([1, 2, 10**9])))


@kind(Reason.STALE, when="any")
def another_attempt_or_run(sound: Sound) -> Reply:
    return sound.written(**({"attempt": 99} if sound.rng.integers(2) else {"run": "another-run"}))


@kind(Reason.STALE, Reason.KIND, Reason.SHAPE, when="any")
def replay_of_its_own(sound: Sound) -> Reply:
    return sound.before if sound.before is not None else sound.written(round=sound.order.round + 1)


@kind(Reason.SENDER, Reason.SHAPE, when="any")
def replay_of_somebody_else(sound: Sound) -> Reply:
    names = sorted(set(sound.others) - {sound.site})
    return sound.others[names[int(sound.rng.integers(len(names)))]] if names else sound.written(client="somebody")


@kind(Reason.PROTOCOL, when="any")
def another_protocol(sound: Sound) -> Reply:
    return sound.with_setting(HEAD, "protocol", [0, 99, "four", 2.5][int(sound.rng.integers(4))])


@kind(Reason.PROXY, when="any")
def another_proxy_set(sound: Sound) -> Reply:
    return sound.with_setting(f"task.{sound.task}", "proxy-digest", sound.rng.bytes(16).hex())


@kind(Reason.TASK, when="any")
def another_task(sound: Sound) -> Reply:
    sound.content["task.weather"] = sound.content[f"task.{sound.task}"]
    return sound.content


@kind(Reason.KIND)
def another_kind_of_knowledge(sound: Sound) -> Reply:
    if sound.rng.integers(2):
        return sound.telling(Features(sound.labels.samples, sound.labels.values))
    return sound.telling(Parameters("mlp-small", {"w": np.ones((3, 2), np.float32)}))


@kind(Reason.MALFORMED, Reason.KIND, Reason.RANGE)
def knowledge_with_another_header(sound: Sound) -> Reply:
    words = [("kind", "wisdom"), ("header.form", "shouting"), ("header.temperature", 0.0), ("header.output", "dense")]
    words += [("header.temperature", 7.0), ("header.form", "logits"), ("header.temperature", "hot")]
    key, value = words[int(sound.rng.integers(len(words)))]
    return sound.with_setting(f"task.{sound.task}", key, value)


@kind(Reason.RANGE, when="any")
def no_examples(sound: Sound) -> Reply:
    return sound.with_setting(f"task.{sound.task}", "num-examples", 0)


# Errors --------------------------------------------------------------------------------------------------------------


@kind(Reason.CLIENT_ERROR, when="any")
def an_error(sound: Sound) -> Reply:
    return Error(int(sound.rng.integers(0, 1000)), "".join(map(chr, sound.rng.integers(1, 50_000, 50))))


@kind(Reason.CLIENT_ERROR, when="any")
def a_long_error(sound: Sound) -> Reply:
    return Error(2, "x" * 10_000)  # of more than 16 KiB the proxy lets nothing through


@kind(*set(Reason), when="any")
def a_refusal(sound: Sound) -> Reply:
    reason = str(sound.rng.choice([str(one) for one in Reason]))
    return introduction.write_refusal(replace(Refusal(Reason.REFUSED, "z" * 100_000), reason=Reason(reason)))
