"""Knowledge and names in a method's memory, which holds tensors alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from fedstill.common.knowledge import Knowledge, knowledge_from_parts
from fedstill.common.sides import Memory

_HEAD = ".head"


def keep(memory: Memory, key: str, knowledge: Knowledge) -> None:
    """Keep knowledge under a key, in place of what was there."""
    forget(memory, key)
    memory[key + _HEAD] = _as_bytes([knowledge.kind, knowledge.header()])
    memory |= {f"{key}.array.{name}": torch.from_numpy(array.copy()) for name, array in knowledge.arrays().items()}


def kept(memory: Memory, key: str) -> Knowledge | None:
    """What is kept under a key; None for nothing."""
    if key + _HEAD not in memory:
        return None
    kind, header = json.loads(memory[key + _HEAD].numpy().tobytes())
    start = f"{key}.array."
    arrays = {name.removeprefix(start): value.numpy() for name, value in memory.items() if name.startswith(start)}
    return knowledge_from_parts(kind, header, arrays)


def forget(memory: Memory, key: str) -> None:
    """Drop what is kept under a key."""
    for name in [name for name in memory if name == key + _HEAD or name.startswith(f"{key}.array.")]:
        del memory[name]


def keep_names(memory: Memory, key: str, names: Sequence[str]) -> None:
    """Keep names, in order, under a key."""
    memory[key] = _as_bytes(list(names))


def kept_names(memory: Memory, key: str) -> list[str]:
    """The names that are kept under a key; none if nothing is."""
    return [str(name) for name in json.loads(memory[key].numpy().tobytes())] if key in memory else []


def _as_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
