"""Messages ↔ Flower's records. The only file that knows the wire's keys, and the only one in `common` that knows Flower.

A message is a RecordDict:

    "fedstill"          ConfigRecord   protocol, run, round, … (the same for all clients)
    "client"            ConfigRecord   what differs from client to client
    "task.NAME"         ConfigRecord   proxy digest, kind and header of the knowledge
    "knowledge.NAME"    ArrayRecord    its arrays, as the codec packs them
    "metrics.NAME"      MetricRecord   measures

Sample ids travel only where the other side cannot know them. Arrays are read from the bytes without a copy, after their
declared type and size have been compared with what is really there: nothing is allocated on a stranger's word.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray

from fedstill.common import PROTOCOL, __version__
from fedstill.common.codec import Codec
from fedstill.common.errors import KnowledgeError, MismatchError, Reason
from fedstill.common.knowledge import Arrays, Header, Knowledge, SoftLabels, knowledge_from_parts
from fedstill.common.learning import Training
from fedstill.common.messages import (
    Answer,
    Description,
    Method,
    Metrics,
    Order,
    TaskAnswer,
    TaskDescription,
    TaskOrder,
)
from fedstill.common.registry import CODECS

_HEAD, _CLIENT, _TASK, _KNOWLEDGE, _METRICS = "fedstill", "client", "task.", "knowledge.", "metrics."
_HEADER = "header."
_SAMPLES = "samples"
_SAME = "as-ordered"
_FIRST = "first"
_LISTED = "listed"

LARGEST_PROXY_SET = 10_000_000
"""A message that claims more samples is refused before their ids are counted out."""


def content_bytes(content: RecordDict) -> int:
    """Size of a message's content on the wire, in bytes."""
    return int(recorddict_to_proto(content).ByteSize())


def write_order(order: Order) -> RecordDict:
    """An order as records."""
    codec = find_codec(order.method.codec)
    method = {
        "algorithm": order.method.algorithm,
        "options": dict(order.method.options),
        "training": asdict(order.method.training),
    }
    content = RecordDict(
        {
            _HEAD: ConfigRecord(
                {
                    "protocol": PROTOCOL,
                    "run": order.run,
                    "round": order.round,
                    "rounds": order.rounds,
                    "attempt": order.attempt,
                    "seed": order.seed,
                    "codec": order.method.codec,
                    "method": json.dumps(method, sort_keys=True),
                }
            ),
            _CLIENT: ConfigRecord({"version": order.version}),
        }
    )
    for name, task in order.tasks.items():
        head = ConfigRecord({"proxy-digest": task.proxy_digest})
        arrays: dict[str, NDArray[np.generic]] = {}
        _write_samples("order", task.samples, None, head, arrays)
        _write_knowledge(task.knowledge, task.samples, codec, head, arrays)
        content[_TASK + name] = head
        content[_KNOWLEDGE + name] = _array_record(arrays)
    return content


def with_version(content: RecordDict, version: int) -> RecordDict:
    """The same order for a client whose student has another version; everything else is shared."""
    copy = RecordDict({key: record for key, record in content.items()})
    copy[_CLIENT] = ConfigRecord({"version": version})
    return copy


def read_order(content: RecordDict) -> Order:
    """An order from records.

    Raises:
        MismatchError: if the server speaks another protocol.
        KnowledgeError: if a part is missing or malformed.
    """
    head = _head(content)
    method = json.loads(_text(head, "method"))
    codec = find_codec(_text(head, "codec"))
    tasks = {}
    for name, task, arrays in _tasks(content):
        samples = _read_samples("order", None, task, arrays)
        tasks[name] = TaskOrder(
            _text(task, "proxy-digest"), samples, _read_knowledge(samples, codec, task, arrays)
        )
    return Order(
        run=_text(head, "run"),
        round=_whole(head, "round"),
        rounds=_whole(head, "rounds"),
        attempt=_whole(head, "attempt"),
        seed=_whole(head, "seed"),
        version=_whole(content.config_records[_CLIENT], "version"),
        method=Method(method["algorithm"], method["options"], Training(**method["training"]), _text(head, "codec")),
        tasks=tasks,
    )


def write_answer(answer: Answer, order: Order) -> RecordDict:
    """An answer as records."""
    codec = find_codec(order.method.codec)
    head = {
        "protocol": PROTOCOL,
        "run": answer.run,
        "round": answer.round,
        "attempt": answer.attempt,
        "client": answer.client,
        "version": answer.version,
    }
    content = RecordDict({_HEAD: ConfigRecord(cast("dict[str, Any]", head))})
    for name, task in answer.tasks.items():
        config = ConfigRecord({"proxy-digest": task.proxy_digest, "num-examples": task.examples})
        arrays: dict[str, NDArray[np.generic]] = {}
        _write_knowledge(task.knowledge, order.tasks[name].samples, codec, config, arrays)
        content[_TASK + name] = config
        content[_KNOWLEDGE + name] = _array_record(arrays)
        content[_METRICS + name] = MetricRecord(cast("dict[str, Any]", dict(task.metrics)))
    return content


def read_answer(content: RecordDict, order: Order) -> Answer:
    """An answer from records, to the order that it answers.

    Raises:
        MismatchError: if the client speaks another protocol.
        KnowledgeError: if a part is missing or malformed.
    """
    head = _head(content)
    codec = find_codec(order.method.codec)
    tasks = {}
    for name, task, arrays in _tasks(content):
        if name not in order.tasks:
            raise MismatchError(f"task '{name}'", f"expected one of {', '.join(order.tasks)}", reason=Reason.TASK)
        tasks[name] = TaskAnswer(
            _text(task, "proxy-digest"),
            _whole(task, "num-examples"),
            _read_knowledge(order.tasks[name].samples, codec, task, arrays),
            _read_metrics(content, name),
        )
    return Answer(
        client=_text(head, "client"),
        run=_text(head, "run"),
        round=_whole(head, "round"),
        attempt=_whole(head, "attempt"),
        version=_whole(head, "version"),
        tasks=tasks,
    )


def write_description(description: Description) -> RecordDict:
    """A client's description of itself as records."""
    content = RecordDict(
        {
            _HEAD: ConfigRecord(
                {"protocol": PROTOCOL, "client": description.client, "software": description.software}
            )
        }
    )
    for name, task in description.tasks.items():
        config = {key.replace("_", "-"): value for key, value in asdict(task).items()}
        content[_TASK + name] = ConfigRecord(
            config | {"classes": list(task.classes), "input-shape": list(task.input_shape)}
        )
    return content


def read_description(content: RecordDict) -> Description:
    """A client's description of itself from records.

    Raises:
        MismatchError: if the client speaks another protocol.
        KnowledgeError: if a part is missing or malformed.
    """
    head = _head(content)
    tasks = {}
    for key, config in content.config_records.items():
        if key.startswith(_TASK):
            tasks[key.removeprefix(_TASK)] = TaskDescription(
                output=_text(config, "output"),
                modality=_text(config, "modality"),
                classes=tuple(str(name) for name in _list(config, "classes")),
                input_shape=tuple(int(size) for size in _list(config, "input-shape")),
                model=_text(config, "model"),
                parameters=_whole(config, "parameters"),
                examples=_whole(config, "examples"),
                proxy_digest=_text(config, "proxy-digest"),
            )
    return Description(_text(head, "client"), _text(head, "software"), tasks)


def write_question() -> RecordDict:
    """The content of a message that asks a client to describe itself."""
    return RecordDict({_HEAD: ConfigRecord({"protocol": PROTOCOL, "software": __version__})})


def check_protocol(content: RecordDict) -> None:
    """Raise MismatchError if the other side speaks another protocol."""
    _head(content)


def find_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ConfigError: if there is none.
    """
    codec: Codec = CODECS.get(name)()
    return codec


def _head(content: RecordDict) -> ConfigRecord:
    head = content.config_records.get(_HEAD)
    if head is None:
        raise KnowledgeError(f"a message of {sorted(content)}", f"expected a record '{_HEAD}'")
    if head.get("protocol") != PROTOCOL:
        raise MismatchError(
            f"protocol {head.get('protocol')}",
            f"expected {PROTOCOL}",
            f"install the same version of fedstill on both sides; here it is {__version__}",
        )
    return head


def _tasks(content: RecordDict) -> list[tuple[str, ConfigRecord, dict[str, NDArray[np.generic]]]]:
    found = []
    for key, config in content.config_records.items():
        if key.startswith(_TASK):
            name = key.removeprefix(_TASK)
            record = content.array_records.get(_KNOWLEDGE + name, ArrayRecord())
            found.append((name, config, {part: _read_array(part, array) for part, array in record.items()}))
    return found


def _write_knowledge(
    knowledge: Knowledge | None,
    ordered: NDArray[np.int64],
    codec: Codec,
    head: ConfigRecord,
    arrays: dict[str, NDArray[np.generic]],
) -> None:
    if knowledge is None:
        return
    head["kind"] = knowledge.kind
    for key, value in knowledge.header().items():
        head[_HEADER + key] = value
    parts = dict(knowledge.arrays())
    if isinstance(knowledge, SoftLabels):
        _write_samples("knowledge", knowledge.samples, ordered, head, arrays)
        del parts[_SAMPLES]
    arrays.update(codec.encode(parts))


def _read_knowledge(
    ordered: NDArray[np.int64], codec: Codec, head: ConfigRecord, arrays: dict[str, NDArray[np.generic]]
) -> Knowledge | None:
    if "kind" not in head:
        return None
    header = cast(Header, {key.removeprefix(_HEADER): head[key] for key in head if key.startswith(_HEADER)})
    kind = _text(head, "kind")
    own = {name: array for name, array in arrays.items() if not name.startswith(f"{_SAMPLES}.")}
    parts: dict[str, NDArray[np.generic]] = dict(codec.decode(own))
    if kind == SoftLabels.kind:
        parts[_SAMPLES] = _read_samples("knowledge", ordered, head, arrays)
    return knowledge_from_parts(kind, header, parts)


def _write_samples(
    whose: str,
    samples: NDArray[np.int64],
    known: NDArray[np.int64] | None,
    head: ConfigRecord,
    arrays: dict[str, NDArray[np.generic]],
) -> None:
    """Sample ids in as few bytes as the other side's knowledge allows."""
    key = f"{_SAMPLES}.{whose}"
    if known is not None and np.array_equal(samples, known):
        head[key] = _SAME
    elif np.array_equal(samples, np.arange(len(samples))):
        head[key] = f"{_FIRST} {len(samples)}"
    else:
        head[key] = _LISTED
        arrays[key] = samples.astype(np.min_scalar_type(int(samples.max(initial=0))))


def _read_samples(
    whose: str, known: NDArray[np.int64] | None, head: ConfigRecord, arrays: dict[str, NDArray[np.generic]]
) -> NDArray[np.int64]:
    key = f"{_SAMPLES}.{whose}"
    form = _text(head, key)
    if form == _SAME and known is not None:
        return known
    if form.startswith(_FIRST) and form.removeprefix(_FIRST).strip().isdigit():
        count = int(form.removeprefix(_FIRST))
        if count > LARGEST_PROXY_SET:
            raise KnowledgeError(f"{count} proxy samples", f"expected at most {LARGEST_PROXY_SET}", reason=Reason.SAMPLES)
        return np.arange(count, dtype=np.int64)
    if form == _LISTED and key in arrays and arrays[key].dtype.kind == "u":
        return arrays[key].astype(np.int64)
    raise KnowledgeError(f"sample ids '{form}'", f"expected {_SAME}, {_FIRST} N or {_LISTED}", reason=Reason.SAMPLES)


def _array_record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})


_NPY_READERS: Mapping[tuple[int, int], Callable[[io.BytesIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _read_array(name: str, array: Array) -> NDArray[np.generic]:
    """An array from its bytes, without a copy and without pickle."""
    stream = io.BytesIO(array.data)
    try:
        shape, fortran, dtype = _NPY_READERS[np.lib.format.read_magic(stream)](stream)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise KnowledgeError(f"array '{name}'", f"expected NumPy's format: {error}") from None
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise KnowledgeError(
            f"array '{name}' of type {dtype}", "expected numbers of at most 64 bits", reason=Reason.TYPE
        )
    start = stream.tell()
    declared, there = math.prod(shape) * dtype.itemsize, len(array.data) - start
    if declared != there or fortran or min(shape, default=0) < 0:
        raise KnowledgeError(
            f"array '{name}' of {there} bytes", f"expected {declared} for shape {shape} of {dtype}", reason=Reason.SHAPE
        )
    return np.frombuffer(array.data, dtype=dtype, offset=start).reshape(shape)


def _read_metrics(content: RecordDict, name: str) -> Metrics:
    record = content.metric_records.get(_METRICS + name, MetricRecord())
    return {
        key: [float(item) for item in value] if isinstance(value, list) else float(value)
        for key, value in record.items()
    }


def _text(record: ConfigRecord, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise KnowledgeError(f"'{key}' = {value!r}", "expected a text")
    return value


def _whole(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise KnowledgeError(f"'{key}' = {value!r}", "expected a whole number >= 0")
    return value


def _list(record: ConfigRecord, key: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise KnowledgeError(f"'{key}' = {value!r}", "expected a list")
    return value
