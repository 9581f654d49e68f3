"""The public pack: everything that the parties of a federation share and may see, as files.

    pack.toml             the tasks: kind, options, label space, shapes, digests
    TASK.safetensors      raw public samples; perhaps their labels, and samples to measure everybody with
    TASK-tokenizer.json   of a task that reads texts with one

Whoever holds the pack makes the same inputs of it, bit for bit, as everybody else; nothing in it is about private data.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from fedstill.common import __version__
from fedstill.common.data.content import find_task_folder
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, DataError, nearest
from fedstill.common.files import write_atomically
from fedstill.common.registry import TASKS
from fedstill.common.scenario import build, options, to_toml
from fedstill.common.task import Examples, Task, TaskData, TaskSpec

FORMAT = 1
"""Version of the files."""

INDEX = "pack.toml"

_PROXY, _LABELS, _TEST, _TEST_LABELS = "proxy", "proxy.targets", "test", "test.targets"
_CURE = "fetch the pack again"
_TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class PackTask:
    """One task's line in the index.

    Attributes:
        kind: of task.
        file: of its samples, in the pack's folder.
        sha256: of that file, hexadecimal.
        proxy_digest: of the public samples as models read them: what both sides compare in every message.
        output, modality, classes, input_shape, vocabulary, positions, tokenizer: as in `TaskSpec`.
        columns: as in `TaskData`.
        options: of the kind.
        group: whose public samples they are, as in `TaskShare`.
    """

    kind: str
    file: str
    sha256: str
    proxy_digest: str
    output: str
    modality: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    vocabulary: int = 0
    positions: tuple[int, ...] = ()
    tokenizer: str = ""
    columns: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""

    def __post_init__(self) -> None:
        for name in (self.file, str(self.options.get(_TOKENIZER, ""))):
            if PurePath(name).name != name:
                raise ConfigError(f"file '{name}'", "expected the name of a file in the pack's folder", _CURE)


@dataclass(frozen=True, slots=True, eq=False)
class PublicTask:
    """What everybody has of a task.

    Attributes:
        task: its kind.
        spec: over its whole label space.
        group: whose public samples they are.
        raw: (P, …) public samples as they were read.
        proxy: the same as models read them.
        proxy_targets: (P, …) their labels, for measurement only; None if nobody knows them.
        test: samples to measure everybody with, ready; None if there are none.
        columns: as in `TaskData`.
    """

    task: Task
    spec: TaskSpec
    group: str
    raw: Tensor
    proxy: ProxySet
    proxy_targets: Tensor | None
    test: Examples | None
    columns: tuple[str, ...]

    def ready(self, examples: Examples) -> Examples:
        """Raw examples as models read them."""
        return examples.with_inputs(self.task.prepare(examples.inputs, self.raw))


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack's index.

    Attributes:
        folder: where it lies.
        fedstill: version that wrote it.
        tasks: by name.
    """

    folder: Path
    fedstill: str
    tasks: Mapping[str, PackTask]

    def digests(self) -> dict[str, str]:
        """The digest of each task's public samples, by task."""
        return {name: task.proxy_digest for name, task in self.tasks.items()}

    def task(self, name: str) -> PackTask:
        """A task's line.

        Raises:
            ConfigError: if there is no such task.
        """
        if name not in self.tasks:
            raise ConfigError(f"task '{name}'", f"expected a task of {self.folder}", nearest(name, self.tasks))
        return self.tasks[name]

    def kind(self, name: str, changes: Mapping[str, Any] = {}) -> Task:
        """A task's kind with its options.

        Args:
            name: the task's.
            changes: options in place of the pack's.

        Raises:
            ConfigError: for an unknown task, kind or option.
        """
        told = self.task(name)
        own = {**told.options, **changes}
        if told.options.get(_TOKENIZER) and _TOKENIZER not in changes:
            own[_TOKENIZER] = str(self.folder.resolve() / str(told.options[_TOKENIZER]))
        kind: Task = build(TASKS.get(told.kind), own, f"tasks.{name}")
        return kind

    def open(self, name: str) -> PublicTask:
        """Read a task.

        Raises:
            DataError: if a file is missing, damaged or another one.
            ConfigError: for an unknown task, kind or option.
        """
        told, task = self.task(name), self.kind(name)
        tensors = self._tensors(name, told)
        raw = tensors[_PROXY]
        proxy = ProxySet(task.prepare(raw, raw))
        spec = TaskSpec(
            name=name,
            output=told.output,
            modality=told.modality,
            classes=told.classes,
            input_shape=tuple(proxy.inputs.shape[1:]),
            vocabulary=told.vocabulary,
            positions=told.positions,
            tokenizer=told.tokenizer,
        )
        came = (proxy.digest, spec.input_shape, task.output, task.modality)
        if came != (told.proxy_digest, told.input_shape, told.output, told.modality):
            raise DataError(
                f"pack {self.folder}: public samples {proxy.digest} of task '{name}', {spec.input_shape}",
                f"expected {told.proxy_digest}, {told.input_shape}, as pack.toml has them",
                f"install fedstill {self.fedstill}, which made the pack, or have it made again",
            )
        test = None
        if _TEST in tensors:
            test = Examples(task.prepare(tensors[_TEST], raw), tensors[_TEST_LABELS])
        return PublicTask(task, spec, told.group or name, raw, proxy, tensors.get(_LABELS), test, columns=told.columns)

    def _tensors(self, name: str, told: PackTask) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.folder / told.file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}", f"cannot be read: {error.strerror or error}", _CURE) from None
        if hashlib.sha256(content).hexdigest() != told.sha256:
            raise DataError(f"{path}", f"expected the file whose SHA-256 is {told.sha256[:12]}…", _CURE)
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise DataError(f"{path}", f"is no file of tensors: {error}", _CURE) from None
        if _PROXY not in tensors or (_TEST in tensors) != (_TEST_LABELS in tensors):
            raise DataError(f"{path} with {', '.join(tensors)}", f"expected the public samples of '{name}'", _CURE)
        return tensors


@dataclass(frozen=True, slots=True)
class _Index:
    format: int
    fedstill: str
    tasks: Mapping[str, Mapping[str, Any]]


def read_pack(folder: Path) -> Pack:
    """A pack's index.

    Raises:
        DataError: if there is none, or it is of another format.
        ConfigError: for a key that cannot be.
    """
    path = folder / INDEX
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}", f"cannot be read: {error.strerror or error}", "name the folder of a pack") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}", f"is no TOML: {error}", _CURE) from None
    if table.get("format") != FORMAT:
        raise DataError(f"{path} of format {table.get('format')}", f"expected {FORMAT}", "install the fedstill of it")
    index: _Index = build(_Index, table, str(path))
    tasks = {name: build(PackTask, task, f"{path}: tasks.{name}") for name, task in index.tasks.items()}
    return Pack(folder, index.fedstill, tasks)


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What is to be written of a task.

    Attributes:
        task: its kind.
        data: its source: label space, vocabulary, tokenizer.
        group: whose public samples they are.
        public: (P, …) raw public samples.
        labels: theirs, for measurement; None to leave them out.
        test: raw samples to measure everybody with, or None.
    """

    task: Task
    data: TaskData
    group: str
    public: Tensor
    labels: Tensor | None = None
    test: Examples | None = None


def write_pack(folder: Path, tasks: Mapping[str, Shared], *, data_dir: Path | None) -> Pack:
    """Write a pack.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        tasks: by name.
        data_dir: where tokenizers are looked for.

    Raises:
        StorageError: if the disk refuses.
        DataError: if a tokenizer is not there.
    """
    found = {name: _write_task(folder, name, shared, data_dir) for name, shared in tasks.items()}
    tables = {name: options(task) for name, task in found.items()}
    index = {"format": FORMAT, "fedstill": __version__, "tasks": tables}
    # Last: a pack with an index is whole.
    write_atomically(folder / INDEX, to_toml(index).encode())
    return Pack(folder, __version__, found)


def _write_task(folder: Path, name: str, shared: Shared, data_dir: Path | None) -> PackTask:
    from safetensors.torch import save

    tensors = {_PROXY: shared.public}
    if shared.labels is not None and len(shared.labels):
        tensors[_LABELS] = shared.labels
    if shared.test is not None:
        tensors |= {_TEST: shared.test.inputs, _TEST_LABELS: shared.test.targets}
    content = save({key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()})
    write_atomically(folder / f"{name}.safetensors", content)
    own = options(shared.task)
    if own.get(_TOKENIZER):
        text = find_task_folder(data_dir, str(own[_TOKENIZER])).read_bytes()
        own[_TOKENIZER] = f"{name}-tokenizer.json"
        write_atomically(folder / own[_TOKENIZER], text)
    proxy = ProxySet(shared.task.prepare(shared.public, shared.public))
    return PackTask(
        kind=shared.task.name,
        file=f"{name}.safetensors",
        sha256=hashlib.sha256(content).hexdigest(),
        proxy_digest=proxy.digest,
        output=shared.task.output,
        modality=shared.task.modality,
        classes=shared.data.classes,
        input_shape=tuple(proxy.inputs.shape[1:]),
        vocabulary=shared.data.vocabulary,
        positions=shared.data.positions,
        tokenizer=shared.data.tokenizer,
        columns=shared.data.columns,
        options=own,
        group=shared.group,
    )


def pinned(tasks: Mapping[str, PackTask]) -> list[str]:
    """The digests of all public samples, each once, in the order of tasks."""
    return list(dict.fromkeys(task.proxy_digest for task in tasks.values()))
