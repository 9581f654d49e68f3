"""Orders and answers ↔ Flower's records; what comes before them is in `introduction`.

A message is a RecordDict; it may come as it is, or as `packing` has packed it:

    "fedstill"          ConfigRecord   protocol, run, round, … (the same for all clients)
    "client"            ConfigRecord   what differs from client to client
    "task.NAME"         ConfigRecord   proxy digest, kind and header of the knowledge
    "knowledge.NAME"    ArrayRecord    its arrays, as the codec packs them
    "metrics.NAME"      MetricRecord   measures

Sample ids travel only where the other side cannot know them. Arrays are copied out of the bytes after their declared
type and size have been compared with what is really there: nothing is allocated on a stranger's word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedstill.common import PROTOCOL, __version__
from fedstill.common.cache import completed
from fedstill.common.codec import Codec, with_context
from fedstill.common.contents import named, of_kind
from fedstill.common.context import LARGEST as LARGEST_CONTEXT
from fedstill.common.context import Memories, Recall, Remembered, known, remember
from fedstill.common.errors import KnowledgeError, MismatchError, Reason
from fedstill.common.handshake import check_software
from fedstill.common.knowledge import (
    ABOUT_SAMPLES,
    AboutSamples,
    Arrays,
    Header,
    Knowledge,
    SoftLabels,
    knowledge_from_parts,
)
from fedstill.common.learning import Training
from fedstill.common.messages import (
    NO_SAMPLES,
    Answer,
    Method,
    Metrics,
    Order,
    TaskAnswer,
    TaskOrder,
    unheard,
)
from fedstill.common.npy import read_array
from fedstill.common.packing import HEAD
from fedstill.common.sample_ids import read_ids, write_ids
from fedstill.common.scenario import codec_from, codec_table
from fedstill.common.wire import LONGEST_NAME, folder_name, head_of, listed, opened, text, whole

_TASK, _KNOWLEDGE, _METRICS = "task.", "knowledge.", "metrics."
_HEADER = "header."
_OWN, _LOST = "own.", "lost"
_SAMPLES = "samples"
_RECALLED = "recalled"
_NO_ROWS: NDArray[np.generic] = np.zeros(0)

_RECORDS: dict[str, type] = {_TASK: ConfigRecord, _KNOWLEDGE: ArrayRecord, _METRICS: MetricRecord}
"""Records of an answer beside its head, by how their names begin."""

CLIENT = "client"
"""Record of an order that differs from client to client."""

LARGEST_PROXY_SET = 10_000_000
"""A message that claims more samples is refused before their ids are counted out."""

MOST_MEASURES = 10_000
"""Numbers among the measures of one task in one answer; they are written to the run's files."""


def write_order(order: Order) -> RecordDict:
    """An order as records."""
    codec = order.method.codec
    method = {
        "algorithm": order.method.algorithm,
        "options": dict(order.method.options),
        "training": asdict(order.method.training),
    }
    content = RecordDict(
        {
            HEAD: ConfigRecord(
                {
                    "protocol": PROTOCOL,
                    "run": order.run,
                    "round": order.round,
                    "rounds": order.rounds,
                    "attempt": order.attempt,
                    "seed": order.seed,
                    "software": __version__,
                    "codec": _codec_text(codec),
                    "method": json.dumps(method, sort_keys=True),
                }
            ),
        }
    )
    for name, task in order.tasks.items():
        head = ConfigRecord({"proxy-digest": task.proxy_digest})
        arrays: dict[str, NDArray[np.generic]] = {}
        _write_samples("order", task.samples, None, head, arrays)
        if len(task.recalled):
            _write_samples(_RECALLED, task.recalled, None, head, arrays)
        _write_knowledge(unheard(task), task.samples, codec, head, arrays, memories=(task.heard,))
        content[_TASK + name] = head
        content[_KNOWLEDGE + name] = _array_record(arrays)
    return for_client(content, order)


def for_client(content: RecordDict, order: Order) -> RecordDict:
    """The same order for another client: version of its student and what both remember; everything else is shared."""
    own = {_OWN + name: task.own.digest for name, task in order.tasks.items() if task.own is not None}
    copy = RecordDict(dict(content))
    copy[CLIENT] = ConfigRecord(cast("dict[str, Any]", {"version": order.version, **own}))
    return copy


def read_order(content: RecordDict, recall: Recall | None = None) -> Order:
    """An order from records.

    Args:
        content: the records.
        recall: what the client remembers of a run's task after a version of its student.

    Raises:
        MismatchError: if the server speaks another protocol, or has another version of fedstill.
        KnowledgeError: if a part is missing or malformed.
    """
    content = opened(content)
    head = head_of(content)
    check_software(text(head, "software"))
    codec = _read_codec(text(head, "codec"))
    client = named(content, CLIENT, ConfigRecord)
    run, version = folder_name(head, "run"), whole(client, "version")
    tasks = {}
    for name, task, arrays in _tasks(content):
        samples = _read_samples("order", None, task, arrays, most=LARGEST_PROXY_SET)
        again = f"{_SAMPLES}.{_RECALLED}" in task
        remembers = recall is not None and (again or with_context(codec) is not None)
        mine = recall(run, version, name) if recall is not None and remembers else Memories()
        knowledge = _read_knowledge(samples, codec, task, arrays, memories=(mine.heard,))
        recalled = NO_SAMPLES
        if again:
            recalled = _read_samples(_RECALLED, None, task, arrays, most=LARGEST_PROXY_SET)
            knowledge = completed(knowledge, mine.told, recalled)
        same = mine.own is not None and client.get(_OWN + name) == mine.own.digest
        own = mine.own if same else None
        tasks[name] = TaskOrder(text(task, "proxy-digest"), samples, knowledge, own, mine.heard, recalled)
    return Order(
        run=run,
        round=whole(head, "round"),
        rounds=whole(head, "rounds"),
        attempt=whole(head, "attempt"),
        seed=whole(head, "seed"),
        version=version,
        method=_read_method(text(head, "method"), codec),
        tasks=tasks,
    )


def write_answer(answer: Answer, order: Order) -> RecordDict:
    """An answer as records."""
    codec = order.method.codec
    head = {
        "protocol": PROTOCOL,
        "run": answer.run,
        "round": answer.round,
        "attempt": answer.attempt,
        "client": answer.client,
        "version": answer.version,
    }
    content = RecordDict({HEAD: ConfigRecord(cast("dict[str, Any]", head))})
    for name, task in answer.tasks.items():
        config = ConfigRecord({"proxy-digest": task.proxy_digest, "num-examples": task.examples})
        arrays: dict[str, NDArray[np.generic]] = {}
        _write_knowledge(
            task.knowledge, order.tasks[name].samples, codec, config, arrays, memories=_both(order.tasks[name])
        )
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
    content = opened(content)
    head = head_of(content)
    if is_plea(content):
        raise KnowledgeError("no answer", "expected one to a self-contained order", reason=Reason.CONTEXT)
    _check_records(content)
    codec = order.method.codec
    tasks = {}
    for name, task, arrays in _tasks(content):
        if name not in order.tasks:
            raise MismatchError(f"task '{name}'", f"expected one of {', '.join(order.tasks)}", reason=Reason.TASK)
        tasks[name] = TaskAnswer(
            text(task, "proxy-digest"),
            whole(task, "num-examples"),
            _read_knowledge(order.tasks[name].samples, codec, task, arrays, memories=_both(order.tasks[name])),
            _read_metrics(content, name),
        )
    return Answer(
        client=text(head, "client"),
        run=text(head, "run"),
        round=whole(head, "round"),
        attempt=whole(head, "attempt"),
        version=whole(head, "version"),
        tasks=tasks,
    )


def _check_records(content: RecordDict) -> None:
    """Refuse records that no answer has: what is passed over would be counted as an answer without it."""
    for key, record in content.items():
        prefix = next((one for one in _RECORDS if key.startswith(one)), "")
        if key != HEAD and not isinstance(record, _RECORDS.get(prefix, ())):
            raise KnowledgeError(
                f"record '{key[:LONGEST_NAME]}', a {type(record).__name__}",
                f"expected {', '.join(f'{one}NAME, a {kind.__name__}' for one, kind in _RECORDS.items())}",
            )


def write_plea() -> RecordDict:
    """The answer of a client that has lost what an order was coded in the context of: tell me all of it."""
    return RecordDict({HEAD: ConfigRecord({"protocol": PROTOCOL, _LOST: True})})


def is_plea(content: RecordDict) -> bool:
    """Whether a client asks for a self-contained order."""
    return named(content, HEAD, ConfigRecord).get(_LOST) is True


def _tasks(content: RecordDict) -> Iterator[tuple[str, ConfigRecord, dict[str, NDArray[np.generic]]]]:
    # One by one: whoever reads them stops at the first that is wrong.
    arrays = of_kind(content, ArrayRecord)
    for key, config in of_kind(content, ConfigRecord).items():
        if key.startswith(_TASK):
            name = key.removeprefix(_TASK)
            record = arrays.get(_KNOWLEDGE + name, ArrayRecord())
            yield name, config, {part: read_array(part, array.data) for part, array in record.items()}


def _codec_text(codec: Codec) -> str:
    """A codec's name; with options other than the defaults, a JSON object of both."""
    table = codec_table(codec)
    return table if isinstance(table, str) else json.dumps(table, sort_keys=True)


def _read_codec(told: str) -> Codec:
    try:
        return codec_from(json.loads(told) if told.startswith("{") else told)
    except (ValueError, RecursionError) as error:
        raise KnowledgeError(f"codec {told!r}", f"expected a name, or a JSON object: {error}") from None


def _read_method(told: str, codec: Codec) -> Method:
    try:
        method = json.loads(told)
        return Method(str(method["algorithm"]), dict(method["options"]), Training(**method["training"]), codec)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KnowledgeError("the order's method", f"expected algorithm, options and training: {error!r}") from None


def _write_knowledge(
    knowledge: Knowledge | None,
    ordered: NDArray[np.int64],
    codec: Codec,
    head: ConfigRecord,
    arrays: dict[str, NDArray[np.generic]],
    *,
    memories: Sequence[Remembered | None],
) -> None:
    if knowledge is None:
        return
    head["kind"] = knowledge.kind
    for key, value in knowledge.header().items():
        head[_HEADER + key] = value
    parts = dict(knowledge.arrays())
    if isinstance(knowledge, AboutSamples):
        _write_samples("knowledge", knowledge.samples, ordered, head, arrays)
        del parts[_SAMPLES]
    coder = with_context(codec)
    if coder is not None and isinstance(knowledge, SoftLabels) and knowledge.values.size <= LARGEST_CONTEXT:
        arrays.update(coder.encode(parts, {"values": known(memories, knowledge.samples, knowledge.classes)}))
    else:
        arrays.update(codec.encode(parts))


def _read_knowledge(
    ordered: NDArray[np.int64],
    codec: Codec,
    head: ConfigRecord,
    arrays: dict[str, NDArray[np.generic]],
    *,
    memories: Sequence[Remembered | None],
) -> Knowledge | None:
    if "kind" not in head:
        return None
    header = cast(Header, {key.removeprefix(_HEADER): head[key] for key in head if key.startswith(_HEADER)})
    kind = text(head, "kind")
    own = {name: array for name, array in arrays.items() if not name.startswith(f"{_SAMPLES}.")}
    coder = with_context(codec)
    if coder is not None and kind == SoftLabels.kind and any(one is not None for one in memories):
        samples = _read_samples("knowledge", ordered, head, arrays, most=LARGEST_CONTEXT)
        classes = listed(head, _HEADER + "classes", str)
        parts = dict(coder.decode(own, {"values": known(memories, samples, classes)}))
    else:
        parts = dict(codec.decode(own))
    if kind in ABOUT_SAMPLES:
        values = parts.get("values", _NO_ROWS)
        rows = values.shape[0] if values.ndim and values.size else 0
        parts[_SAMPLES] = _read_samples("knowledge", ordered, head, arrays, most=rows)
    return knowledge_from_parts(kind, header, parts)


def _both(task: TaskOrder) -> tuple[Remembered | None, Remembered | None]:
    """The context of an answer: what the client told last, and what it has just been told.

    Not what is half remembered: the sides may have other classes in it.
    """
    return task.own, None if len(task.recalled) else remember(task.knowledge)


def _write_samples(
    whose: str,
    samples: NDArray[np.int64],
    known: NDArray[np.int64] | None,
    head: ConfigRecord,
    arrays: dict[str, NDArray[np.generic]],
) -> None:
    key = f"{_SAMPLES}.{whose}"
    head[key], array = write_ids(samples, known)
    if array is not None:
        arrays[key] = array


def _read_samples(
    whose: str,
    known: NDArray[np.int64] | None,
    head: ConfigRecord,
    arrays: dict[str, NDArray[np.generic]],
    *,
    most: int,
) -> NDArray[np.int64]:
    key = f"{_SAMPLES}.{whose}"
    return read_ids(text(head, key), arrays.get(key), known, most=most)


def _array_record(arrays: Arrays) -> ArrayRecord:
    # Not ascontiguousarray, which makes a number of a 0-dimensional array a row of one.
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})


def _read_metrics(content: RecordDict, name: str) -> Metrics:
    record = named(content, _METRICS + name, MetricRecord)
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in record.values())
    if max(numbers, len(record)) > MOST_MEASURES or max(map(len, record), default=0) > LONGEST_NAME:
        raise KnowledgeError(
            f"{numbers} measures of task '{name}'",
            f"expected at most {MOST_MEASURES}, with names of at most {LONGEST_NAME} characters",
            reason=Reason.TOO_LARGE,
        )
    return {
        key: [float(item) for item in value] if isinstance(value, list) else float(value)
        for key, value in record.items()
    }
