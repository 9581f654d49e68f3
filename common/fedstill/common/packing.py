"""Records of a message in few bytes: their names and small parts, deflated with a dictionary that both sides know.

A coded prediction of 200 samples takes 150 bytes; the records around it, with their names, digests, options and array
headers, would take six times as much in every message. A packed message is a RecordDict:

    "fedstill"  ConfigRecord   protocol and run as they were, and packed: all other records and what is left of this
                               one, as Flower's protobuf, deflated (RFC 1951)
    "large"     ArrayRecord    only if there are large arrays, whose bytes outweigh their names: those bytes, in one
                               array; the records around them are packed like all others

and what the sender keeps apart. Flower's SuperLink writes down every record, every array and every 5 MiB of an array
by itself, each at a request of its own: a network's two hundred arrays would be four hundred of them.

A stranger's bytes are inflated up to a limit, whatever they would become.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Wire

from fedstill.common.contents import named, of_kind
from fedstill.common.errors import KnowledgeError, Reason

HEAD = "fedstill"
"""Record that every message has."""

LARGEST_PART = 2**11
"""Bytes of a record's arrays that are packed with the rest; more of them are large."""

LARGEST = 2**22
"""Bytes that a packed part unpacks to."""

_PACKED, _LARGE, _SIZES = "packed", "large", "sizes"
_PLAIN = ("protocol", "run")
"""Of the head: what both sides compare before they unpack, and a name, which must not change the size of the rest."""

_RAW = -15  # window of 32 KiB, without zlib's header and check sum: gRPC's transport has its own

# Part of the protocol: change it only together with PROTOCOL. What is most usual stands last, where it costs least.
_DICTIONARY = (
    b"metrics.\x1afinal.alone.train-loss final.kept-alone trained.teacher-weight.f1.auc.map50.ndcg-at-10.spearman.chrf"
    b"final.macro-f1final.own-accuracyfinal.class-accuracyfinal.accuracy\x12\t\t"
    b"alone.macro-f1alone.own-accuracyalone.class-accuracyalone.accuracy\x12\t\t"
    b"distilled.macro-f1distilled.own-accuracydistilled.class-accuracydistilled.accuracy\x12\t\t"
    b"trained.macro-f1\x12\t\ttrained.own-accuracy\x12\t\ttrained.class-accuracytrained.accuracy\x12\t\t"
    b"multi-label pair ranking regression heat-map relations features prototypes parameters embeddings logits "
    b"values:topk values:int8 values:argmax values token-level float32 <f4 float16 <f2 |i1 int8 uint16 <u2 "
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }                                                \n"
    b"\x1a\rnumpy.ndarray\"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': ("
    b'"method{"algorithm": "dsfl", "options": {"distil-epochs": 2, "temperature": 0.1}, "training": {"adaptive": true, '
    b'"algorithm": "fedmd", "options": {"distil-epochs": 2, "doubt": 1.0, "memory": true, "temperature": 0.3}, '
    b'"training": {"adaptive": false, "batch_size": 32, "channels_last": true, "consistency": 0.0, "epochs": 3, '
    b'"learning_rate": 0.001, "mirror": false, "optimizer": "adam", "precision": "fp32", "warmup": 0, '
    b'"weight_decay": 0.0}}rawfp16int8topkargmaxsqrtp'
    b"software\x12\x07*\x050.1.0textspeechtabular\n\x17\n\x06output\x12\r*\x0bcategorical\n\x13\n\x08modality\x12\x07*\x05image"
    b"\n,\n\x07classes\x12!\xca\x01\x1e\n\x010\n\x0binput-shape\x12\x08\xb2\x01\x05\n\x03\x02\x10\x10\n\x14\n\x05model\x12\x0b*"
    b"\tmlp-mediumcnn-small\n\x11\n\nparameters\x12\x03\x10\n\x0e\n\x08examples\x12\x02\x10\n\x10\n\tpositions\x12\x03\xc2\x01\x00"
    b'\n\x0f\n\ttokenizer\x12\x02*\x00\x12 *\x1e{"levels": 2, "name": "sqrtp"}'
    b"\x12\x02\x10\x02\n\x10\n\x05codec\x12\x07*\x05sqrtp\n\xda\x02\n\x06method\x12\xcf\x02*\xcc\x02"
    b'{"algorithm": "fedstill", "options": {"distil-epochs": 2, "doubt": 1.0, "memory": true, "temperature": 0.3}, '
    b"header.output\x12\r*\x0bcategorical\n3\n\x0eheader.classes\x12!\xca\x01\x1e\n\x010\n\x011\n\x012\n\x013\n\x014"
    b"\n\x015\n\x016\n\x017\n\x018\n\x019\n\x1f\n\x12header.temperature\x12\t\t\x00\x00\x00\x00\x00\x00\xf0?\n\x1e\n"
    b"\x0bheader.form\x12\x0f*\rprobabilities\n!\n\x11samples.knowledge\x12\x0c*\nas-ordered\n"
    b"\x0cvalues:sqrtp\x12\x05uint8\x12\x02\x1a\rnumpy.ndarray\x04kind\x12\r*\x0bsoft-labels\n\x1e\n\r"
    b"\rsamples.order\x12\t*\x07first 0\n\x14\n\x10knowledge.\x12"
    b"\x0cproxy-digest\x12\x12*\x10\n\x12\x0cnum-examples\x12\x03"
    b'\n\x0btask.\n\n\x08fedstill"\n\x0e\n\x08protocol\x12\x02\x10\x06\n\x0c\n\x03run\x12\n\x0b\n\x05round\x12\x02\x10'
    b"\n\x0c\n\x06rounds\x12\x02\x10\x14\n\r\n\x07attempt\x12\x02\x10\x02\n\n\n\x04seed\x12\x02\x10\x02"
    b"\n\x14\n\x06client\x12\n*\x08client-1\n\r\n\x07version\x12\x02\x10\x02"
)


def content_bytes(content: RecordDict) -> int:
    """Size of a message's content on the wire, in bytes."""
    return int(recorddict_to_proto(content).ByteSize())


def packed(content: RecordDict, *, apart: Collection[str] = ()) -> RecordDict:
    """The same message in fewer bytes; as it is if that gains nothing, or if it is larger than anybody would unpack.

    Args:
        content: its records.
        apart: names of those that stay as they are.
    """
    head = named(content, HEAD, ConfigRecord)
    if not head or _PACKED in head:
        return content
    plain = ConfigRecord({key: head[key] for key in _PLAIN if key in head})
    rest = ConfigRecord({key: value for key, value in head.items() if key not in plain})
    small, beside = RecordDict({HEAD: rest}), {}
    large: dict[str, list[bytes]] = {}
    for key, record in content.items():
        if key in apart:
            beside[key] = record
        elif isinstance(record, ArrayRecord) and sum(map(_size, record.values())) > LARGEST_PART:
            large[key] = [array.data for array in record.values()]
            small[key] = ArrayRecord({name: _with_bytes(array, b"") for name, array in record.items()})
        elif key != HEAD:
            small[key] = record
    if large:
        pieces = [piece for one in large.values() for piece in one]
        rest[_LARGE], rest[_SIZES] = list(large), list(map(len, pieces))
        beside[_LARGE] = ArrayRecord({_LARGE: Array("", (), "", b"".join(pieces))})
    data = recorddict_to_proto(small).SerializeToString(deterministic=True)
    if len(data) > LARGEST:
        return content
    press = zlib.compressobj(9, zlib.DEFLATED, _RAW, zdict=_DICTIONARY)
    plain[_PACKED] = press.compress(data) + press.flush()
    short = RecordDict({HEAD: plain, **beside})
    return min(content, short, key=content_bytes)


def unpacked(content: RecordDict) -> RecordDict:
    """The records as they were before `packed`; those of a message that is not packed as they are.

    Raises:
        KnowledgeError: for bytes that `packed` did not make.
    """
    head = named(content, HEAD, ConfigRecord)
    data = head.get(_PACKED)
    if not isinstance(data, bytes):
        return content
    try:
        inner = recorddict_from_proto(Wire.FromString(_inflated(data)))
        rest = named(inner, HEAD, ConfigRecord)
        keys, sizes = cast("list[str] | None", rest.pop(_LARGE, None)), cast("list[int]", rest.pop(_SIZES, []))
        if keys is not None:
            arrays, pieces = of_kind(inner, ArrayRecord), named(content, _LARGE, ArrayRecord)[_LARGE]
            _fill([arrays[key] for key in keys], sizes, pieces.data)
    except KnowledgeError:
        raise
    except Exception as error:  # the border: what protobuf, zlib and Flower raise has no common base
        raise KnowledgeError(f"a packed message of {len(data)} bytes", f"expected records: {error!r}") from None
    outer = {key: value for key, value in head.items() if key != _PACKED}
    beside = {key: record for key, record in content.items() if keys is None or key != _LARGE}
    return RecordDict({**inner, **beside, HEAD: ConfigRecord({**outer, **rest})})


def _fill(records: Sequence[ArrayRecord], sizes: Sequence[int], data: bytes) -> None:
    """Give arrays their bytes.

    Raises:
        KnowledgeError: if these are not as many as they say.
    """
    if sum(map(len, records)) != len(sizes) or min(sizes) < 0 or sum(sizes) != len(data):
        raise KnowledgeError(f"arrays of {len(data)} bytes", f"expected {sum(sizes)} in {len(sizes)} arrays")
    ends = iter(accumulate(sizes, initial=0))
    begin = next(ends)
    for record in records:
        for name, array in record.items():
            end = next(ends)
            record[name] = _with_bytes(array, data[begin:end])
            begin = end


def _inflated(data: bytes) -> bytes:
    press = zlib.decompressobj(_RAW, zdict=_DICTIONARY)
    plain = press.decompress(data, LARGEST)
    if not press.eof:
        raise KnowledgeError(
            f"a packed message of {len(data)} bytes",
            f"expected all of one that unpacks to at most {LARGEST}",
            reason=Reason.TOO_LARGE,
        )
    return plain


def _size(array: Array) -> int:
    return len(array.data)


def _with_bytes(array: Array, data: bytes) -> Array:
    return Array(array.dtype, array.shape, array.stype, data)
