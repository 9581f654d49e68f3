"""Knowledge and names in a method's memory, which holds tensors alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from fedstill.common.knowledge import Knowledge, knowledge_from_parts
from fedstill.common.sides import Memory

_HEAD, _ARRAY = "head", "array."
"""What stands before a key, which may be any text, and ends with the first ":"."""


def keep(memory: Memory, key: str, knowledge: Knowledge) -> None:
    """Keep knowledge under a key, in place of what was there."""
    forget(memory, key)
    memory[f"{_HEAD}:{key}"] = _as_bytes([knowledge.kind, knowledge.header()])
    for name, array in knowledge.arrays().items():
        memory[f"{_ARRAY}{name}:{key}"] = torch.from_numpy(array.copy())


def kept(memory: Memory, key: str) -> Knowledge | None:
    """What is kept under a key; None for nothing."""
    head = memory.get(f"{_HEAD}:{key}")
    if head is None:
        return None
    kind, header = json.loads(head.numpy().tobytes())
    arrays = {
        place.partition(":")[0].removeprefix(_ARRAY): value.numpy()
        for place, value in memory.items()
        if place.startswith(_ARRAY) and place.partition(":")[2] == key
    }
    return knowledge_from_parts(kind, header, arrays)


def forget(memory: Memory, key: str) -> None:
    """Drop what is kept under a key."""
    for place in [place for place in memory if place.startswith((f"{_HEAD}:", _ARRAY))]:
        if place.partition(":")[2] == key:
            del memory[place]


def keep_names(memory: Memory, key: str, names: Sequence[str]) -> None:
    """Keep names, in order, under a key."""
    memory[key] = _as_bytes(list(names))


def kept_names(memory: Memory, key: str) -> list[str]:
    """The names that are kept under a key; none if nothing is."""
    return [str(name) for name in json.loads(memory[key].numpy().tobytes())] if key in memory else []


def _as_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
