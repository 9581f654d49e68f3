"""A client's private examples in a file of its own, as they were read: nobody but this client has it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fedstill.common.data.federation import ClientData
from fedstill.common.errors import DataError
from fedstill.common.files import write_atomically
from fedstill.common.task import Examples

_FORMAT = "fedstill examples 1"
_PARTS = ("private", "holdout")
_CURE = "have it written again with 'fedstill split'"


def write_examples(path: Path, data: ClientData) -> None:
    """Write examples into a file that only its owner can read.

    Raises:
        StorageError: if the disk refuses.
    """
    from safetensors.torch import save

    parts = zip(_PARTS, (data.private, data.holdout), strict=True)
    tensors = {
        f"{part}.{key}": value.clone(memory_format=torch.contiguous_format)
        for part, examples in parts
        for key, value in (("inputs", examples.inputs), ("targets", examples.targets))
    }
    # One entry: the library writes several in an order of chance.
    told = {_FORMAT: json.dumps(list(data.classes))}
    path.touch(mode=0o600)
    write_atomically(path, save(tensors, metadata=told))
    path.chmod(0o600)


def read_examples(path: Path) -> ClientData:
    """Raw examples from a file.

    Raises:
        DataError: if it is missing, damaged or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            names = [f"{part}.{key}" for part in _PARTS for key in ("inputs", "targets")]
            if _FORMAT not in told or set(file.keys()) != set(names):
                raise DataError(f"{path}", f"expected a file of '{_FORMAT}'", _CURE)
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}", f"cannot be read: {error}", _CURE) from None
    private, holdout = (Examples(tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in _PARTS)
    return ClientData(private, holdout, tuple(json.loads(told[_FORMAT])))
