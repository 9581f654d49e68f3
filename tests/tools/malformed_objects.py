"""Malformed contributions below Flower's own records: objects of a message that Flower itself would not make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id
from malformed import Raw, Reply, Sound, Thing, kind

from fedstill.common.errors import Reason
from fedstill.server.deploy.writing import ANNOUNCED


def thing(kind_name: str, body: bytes, children: Sequence[Thing] = ()) -> Thing:
    """An object of a message with a body of one's own."""
    ids = dict.fromkeys(one.id for one in children)
    content = f"{kind_name} {','.join(ids)} {len(body)}\0".encode() + body
    identity = get_object_id(content)
    below = {key: value for one in children for key, value in one.objects.items()}
    return Thing(
        identity, ObjectTree(object_id=identity, children=[one.tree for one in children]), {**below, identity: content}
    )


def _record(record: ConfigRecord | MetricRecord) -> Thing:
    content = record.deflate()
    identity = get_object_id(content)
    return Thing(identity, ObjectTree(object_id=identity), {identity: content})


def _envelope(sound: Sound, content: Thing | None, **others: Any) -> Thing:
    proto = message_to_proto(Message(RecordDict(), reply_to=sound.message)).metadata
    for key, value in others.items():
        setattr(proto, key, value)
    proto.message_id = ""
    body = ProtoMessage(metadata=proto).SerializeToString(deterministic=True)
    return thing("Message", body, [content] if content is not None else [])


def _dictionary(parts: Mapping[str, Thing]) -> Thing:
    return thing("RecordDict", json.dumps({key: one.id for key, one in parts.items()}).encode(), [*parts.values()])


def _heads(sound: Sound) -> dict[str, Thing]:
    return {key: _record(record) for key, record in sound.content.config_records.items()}


@kind(Reason.TOO_LARGE)
def array_of_a_repeated_chunk(sound: Sound) -> Reply:
    chunk = thing("ArrayChunk", sound.rng.bytes(1000))
    meta = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 100_000}
    array = thing("Array", json.dumps(meta).encode(), [chunk])
    arrays = thing("ArrayRecord", json.dumps({"values": array.id}).encode(), [array])
    return Raw(_envelope(sound, _dictionary({**_heads(sound), f"knowledge.{sound.task}": arrays})))


@kind(Reason.MALFORMED, when="any")
def objects_with_garbage_in_them(sound: Sound) -> Reply:
    names = ["ConfigRecord", "MetricRecord", "ArrayRecord", "Array", "RecordDict"]
    broken = thing(names[int(sound.rng.integers(len(names)))], b"\xff" + sound.rng.bytes(50))
    return Raw(_envelope(sound, _dictionary({**_heads(sound), f"metrics.{sound.task}": broken})))


@kind(Reason.MALFORMED, when="any")
def a_dictionary_of_other_records(sound: Sound) -> Reply:
    heads = _heads(sound)
    body = json.dumps(dict.fromkeys(heads, "0" * 64)).encode()
    return Raw(_envelope(sound, thing("RecordDict", body, [*heads.values()])))


@kind(Reason.MALFORMED, when="any")
def a_record_in_place_of_a_message(sound: Sound) -> Reply:
    return Raw(_record(ConfigRecord({"x": sound.rng.bytes(20)})))


@kind(Reason.MALFORMED, when="any")
def a_record_in_place_of_the_content(sound: Sound) -> Reply:
    return Raw(_envelope(sound, _record(MetricRecord({"x": float(sound.rng.random())}))))


@kind(Reason.MALFORMED, when="any")
def a_message_without_content(sound: Sound) -> Reply:
    return Raw(_envelope(sound, None))


@kind(Reason.SENDER, when="any")
def an_answer_to_somebody_elses_order(sound: Sound) -> Reply:
    return Raw(_envelope(sound, _dictionary(_heads(sound)), reply_to_message_id=sound.rng.bytes(32).hex()))


@kind(Reason.NO_ANSWER, when="silent")
def announced_and_never_sent(sound: Sound) -> Reply:
    root = _envelope(sound, _dictionary(_heads(sound)))
    return Raw(root, withheld=[*root.objects][: int(sound.rng.integers(1, len(root.objects)))])


@kind(Reason.NO_ANSWER, when="silent")
def bytes_that_are_no_object(sound: Sound) -> Reply:
    root = _envelope(sound, _dictionary(_heads(sound)))
    return Raw(replace(root, objects={**root.objects, root.id: sound.rng.bytes(100)}))


@kind(Reason.NO_ANSWER, Reason.TOO_LARGE, when="silent")
def too_many_objects(sound: Sound) -> Reply:
    most = ANNOUNCED * 1024 // 73 - 20  # that the door lets through
    many = [ObjectTree(object_id=sound.rng.bytes(32).hex()) for _ in range(most)]
    root = _envelope(sound, _dictionary(_heads(sound)))
    return Raw(replace(root, tree=ObjectTree(object_id=root.id, children=[*root.tree.children, *many])))
