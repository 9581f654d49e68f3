"""Tensors of the Open Inference Protocol: elements row-major, raw (little-endian) or in the field of their datatype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.inference.open_inference_pb2 import InferTensorContents


@dataclass(frozen=True, slots=True)
class Datatype:
    """A datatype of the protocol.

    Attributes:
        numpy: its type in NumPy, little-endian.
        field: of `InferTensorContents`; "" for one that travels raw only.
    """

    numpy: np.dtype[Any]
    field: str


DATATYPES = {
    "BOOL": Datatype(np.dtype("?"), "bool_contents"),
    "INT8": Datatype(np.dtype("<i1"), "int_contents"),
    "INT16": Datatype(np.dtype("<i2"), "int_contents"),
    "INT32": Datatype(np.dtype("<i4"), "int_contents"),
    "INT64": Datatype(np.dtype("<i8"), "int64_contents"),
    "UINT8": Datatype(np.dtype("<u1"), "uint_contents"),
    "UINT16": Datatype(np.dtype("<u2"), "uint_contents"),
    "UINT32": Datatype(np.dtype("<u4"), "uint_contents"),
    "UINT64": Datatype(np.dtype("<u8"), "uint64_contents"),
    "FP16": Datatype(np.dtype("<f2"), ""),
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
    "FP64": Datatype(np.dtype("<f8"), "fp64_contents"),
}
"""By name; those that no model of fedstill has to do with (BYTES, BF16) are left out."""

DEEPEST = 8
"""Axes of a tensor."""


def known(name: str, datatype: str) -> Datatype:
    """The datatype of that name.

    Raises:
        KnowledgeError: if there is none; `name` is the tensor's, for the message.
    """
    if datatype not in DATATYPES:
        raise KnowledgeError(
            f"tensor '{name}' of datatype '{datatype[:20]}'",
            f"expected one of {', '.join(DATATYPES)}",
            reason=Reason.TYPE,
        )
    return DATATYPES[datatype]


def read_tensor(
    name: str, datatype: str, shape: Sequence[int], *, contents: InferTensorContents, raw: bytes | None
) -> NDArray[np.generic]:
    """A tensor from a message, as it was sent; a raw one shares the message's memory and cannot be written.

    Args:
        name: of the tensor, for messages.
        datatype: as the message has it.
        shape: as the message has it; nothing is allocated for what is not there.
        contents: the elements, if they are not raw.
        raw: the elements as bytes, or None.

    Raises:
        KnowledgeError: if the parts do not go together.
    """
    kind = known(name, datatype)
    if len(shape) > DEEPEST or any(size < 0 for size in shape):
        raise KnowledgeError(
            f"tensor '{name}' of shape {list(shape)[: DEEPEST + 1]}",
            f"expected up to {DEEPEST} sizes >= 0",
            reason=Reason.SHAPE,
        )
    count = math.prod(shape)
    if raw is not None:
        if len(raw) != count * kind.numpy.itemsize:
            raise KnowledgeError(
                f"tensor '{name}' of {len(raw)} raw bytes",
                f"expected {count * kind.numpy.itemsize} for {datatype} of shape {list(shape)}",
                reason=Reason.SHAPE,
            )
        return np.frombuffer(raw, dtype=kind.numpy).reshape(tuple(shape))
    filled = [field.name for field, _ in contents.ListFields()]
    if filled not in ([kind.field], []) or not kind.field:
        raise KnowledgeError(
            f"tensor '{name}' of datatype {datatype} in {', '.join(filled) or 'no field'}",
            f"expected {kind.field or 'raw bytes'}",
            reason=Reason.TYPE,
        )
    elements = getattr(contents, kind.field)
    if len(elements) != count:
        raise KnowledgeError(
            f"tensor '{name}' of {len(elements)} elements",
            f"expected {count} for shape {list(shape)}",
            reason=Reason.SHAPE,
        )
    try:
        return np.array(elements, dtype=kind.numpy).reshape(tuple(shape))
    except OverflowError:
        raise KnowledgeError(
            f"tensor '{name}' with elements that are no {datatype}", "expected smaller ones", reason=Reason.RANGE
        ) from None


def raw_bytes(array: NDArray[np.generic], datatype: str) -> bytes:
    """The elements of an array as the protocol sends them raw."""
    return np.ascontiguousarray(array, dtype=DATATYPES[datatype].numpy).tobytes()


def typed_contents(array: NDArray[np.generic], datatype: str) -> InferTensorContents:
    """The elements of an array in the field of their datatype, which is not FP16."""
    return InferTensorContents(**{DATATYPES[datatype].field: array.ravel().tolist()})
