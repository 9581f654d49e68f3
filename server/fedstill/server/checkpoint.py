"""Durable steps: a checkpoint is one safetensors file and a manifest with its checksum.

The manifest is written last, by renaming: that is the commit. A crash before it leaves the step undone, a crash after
it leaves the step done. A checkpoint whose checksum does not match is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedstill.common.context import Remembered
from fedstill.common.errors import FedstillError, RunFolderError
from fedstill.common.files import write_atomically
from fedstill.common.knowledge import Knowledge, knowledge_from_parts
from fedstill.server.record import to_line
from fedstill.server.state import RunState, TaskState

log = logging.getLogger(__name__)

KEEP = 3
"""How many checkpoints are kept."""

_MANIFEST = re.compile(r"step-(\d{6})\.json")


def save(folder: Path, state: RunState) -> None:
    """Commit a state.

    Raises:
        StorageError: if the disk refuses; the checkpoints before it are untouched.
    """
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Tensor] = {}
    tasks: dict[str, Any] = {}
    personal: dict[str, Any] = {}
    remember: dict[str, Any] = {}
    for name, task in state.tasks.items():
        tensors |= {f"{name}/model/{key}": value for key, value in task.model.items()}
        tensors |= {f"{name}/memory/{key}": value for key, value in task.memory.items()}
        tensors |= {f"{name}/recalled/{key}": value for key, value in task.recalled.items()}
        tensors |= {f"{name}/pool/{key}": value for key, value in task.pool.items()}
        tasks[name] = _write_knowledge(f"{name}/knowledge", task.knowledge, tensors)
        if task.personal:
            personal[name] = _write_personal(name, task.personal, tensors)
        remembered = {f"own/{place}": own for place, own in enumerate(task.own.values())}
        if task.heard is not None:
            remembered["heard"] = task.heard
        for key, one in remembered.items():
            tensors |= {f"{name}/{key}/{part}": torch.from_numpy(array) for part, array in one.arrays().items()}
        if remembered:
            remember[name] = {"own": list(task.own), "heard": task.heard is not None}
    content = to_bytes({key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()})
    manifest = {
        "step": state.step,
        "tasks": tasks,
        "personal": personal,
        "remembered": remember,
        "versions": dict(state.versions),
        "record": dict(state.record),
        "tensors": hashlib.sha256(content).hexdigest(),
    }
    line = to_line(manifest)
    sealed = json.dumps({"sha256": hashlib.sha256(line.encode()).hexdigest()}) + "\n" + line + "\n"
    write_atomically(_tensors(folder, state.step), content)
    write_atomically(folder / f"step-{state.step:06d}.json", sealed.encode())
    _drop_old(folder, state.step)


def newest(folder: Path) -> RunState | None:
    """The newest sound state, or None if nothing was committed.

    Raises:
        RunFolderError: if there are checkpoints, and every one is damaged.
    """
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        try:
            return _load(folder, step)
        except (OSError, ValueError, KeyError, TypeError, FedstillError) as error:
            log.warning("checkpoint of step %d is damaged (%s); falling back to the one before it", step, error)
    if steps:
        raise RunFolderError(
            f"checkpoints of steps {steps}",
            f"expected a sound one in {folder}",
            "begin the run again in another folder",
        )
    return None


def _load(folder: Path, step: int) -> RunState:
    from safetensors.torch import load

    seal, line = (folder / f"step-{step:06d}.json").read_text(encoding="utf-8").rstrip("\n").split("\n")
    if hashlib.sha256(line.encode()).hexdigest() != json.loads(seal)["sha256"]:
        raise ValueError("checksum of the manifest differs")
    manifest = json.loads(line)
    content = _tensors(folder, step).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["tensors"]:
        raise ValueError("checksum of the tensors differs")
    tensors = load(content)
    return RunState(
        step=manifest["step"],
        tasks={
            name: _read_task(
                name,
                table,
                manifest.get("remembered", {}).get(name, {}),
                manifest.get("personal", {}).get(name, {}),
                tensors,
            )
            for name, table in manifest["tasks"].items()
        },
        versions=manifest["versions"],
        record=manifest["record"],
    )


def _write_knowledge(where: str, knowledge: Knowledge | None, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if knowledge is None:
        return {}
    for key, array in knowledge.arrays().items():
        tensors[f"{where}/{key}"] = torch.from_numpy(array.copy())
    return {"kind": knowledge.kind, "header": knowledge.header()}


def _write_personal(name: str, personal: Mapping[str, Knowledge], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Each piece once, and who is told which: the clients of a cluster are told one and the same."""
    pieces = list({id(one): one for one in personal.values()}.values())
    places = {id(one): place for place, one in enumerate(pieces)}
    tables = [_write_knowledge(f"{name}/personal/{place}", one, tensors) for place, one in enumerate(pieces)]
    return {"pieces": tables, "clients": {client: places[id(one)] for client, one in personal.items()}}


def _read_knowledge(where: str, table: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Knowledge:
    arrays = {key: value.numpy() for key, value in _under(tensors, f"{where}/").items()}
    return knowledge_from_parts(table["kind"], table["header"], arrays)


def _read_task(
    name: str,
    table: Mapping[str, Any],
    remembered: Mapping[str, Any],
    personal: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> TaskState:
    pieces = [
        _read_knowledge(f"{name}/personal/{place}", one, tensors)
        for place, one in enumerate(personal.get("pieces", ()))
    ]

    def memory(key: str) -> Remembered:
        return Remembered.from_arrays(
            {part: value.numpy() for part, value in _under(tensors, f"{name}/{key}/").items()}
        )

    return TaskState(
        _read_knowledge(f"{name}/knowledge", table, tensors) if table else None,
        _under(tensors, f"{name}/model/"),
        _under(tensors, f"{name}/memory/"),
        {client: memory(f"own/{place}") for place, client in enumerate(remembered.get("own", ()))},
        memory("heard") if remembered.get("heard") else None,
        {client: pieces[place] for client, place in personal.get("clients", {}).items()},
        _under(tensors, f"{name}/recalled/"),
        _under(tensors, f"{name}/pool/"),
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(match[1]) for path in folder.iterdir() if (match := _MANIFEST.fullmatch(path.name))]


def _tensors(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"


def _drop_old(folder: Path, step: int) -> None:
    # Steps after this one belong to a future that a damaged checkpoint made the run forget.
    kept = sorted(number for number in _steps(folder) if number <= step)[-KEEP:]
    for number in _steps(folder):
        if number not in kept:
            (folder / f"step-{number:06d}.json").unlink(missing_ok=True)
            _tensors(folder, number).unlink(missing_ok=True)
