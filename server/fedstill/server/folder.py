"""The run folder: everything about a run, in files that other programs read too.

    config.toml     everything needed to repeat the run
    rounds.jsonl    one line for each committed step
    checkpoints/    the last states
    clients/        students of a simulated run
    tensorboard/    events
    report.html     made at the end, and by `fedstill report`
    lock            held by the process that plays a run of a federation

Every file is whole at any moment, but for the last line of rounds.jsonl.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common import __version__
from fedstill.common.errors import RunFolderError
from fedstill.common.files import storage_error, write_atomically
from fedstill.common.lock import LOCK
from fedstill.common.scenario import Scenario, dump, parse, to_toml
from fedstill.server import checkpoint
from fedstill.server.record import to_line
from fedstill.server.state import RunState

RUNS = Path("runs")
"""Where runs go unless another folder is named."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that belongs to one run.

    Attributes:
        path: its place; the last part is the run's name.
    """

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def clients(self) -> Path:
        """Where a simulation keeps its students."""
        return self.path / "clients"

    @property
    def report(self) -> Path:
        """The report's place."""
        return self.path / "report.html"

    def remove(self) -> None:
        """Take away a folder in which nothing was committed."""
        if not self.records():
            shutil.rmtree(self.path, ignore_errors=True)

    def add(self, **tables: Any) -> None:
        """Write further tables into config.toml, in place of those of the same name.

        Raises:
            StorageError: if the disk refuses; the file is as before.
        """
        config = self.config()
        if any(config.get(name) != table for name, table in tables.items()):
            write_atomically(self.path / "config.toml", to_toml(config | tables).encode())

    def scenario(self) -> Scenario:
        """The scenario of the run.

        Raises:
            RunFolderError: if the folder is none of a run.
        """
        return parse(self.config()["scenario"])

    def config(self) -> dict[str, Any]:
        """What config.toml holds.

        Raises:
            RunFolderError: if it is missing, no TOML, or without a scenario.
        """
        cure = "name the folder of a run"
        try:
            config = tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunFolderError(f"run folder {self.path}", f"config.toml cannot be read: {error}", cure) from None
        if not isinstance(config.get("scenario"), dict):
            raise RunFolderError(f"run folder {self.path}", "expected a table [scenario] in config.toml", cure)
        return config

    def records(self) -> list[dict[str, Any]]:
        """The committed steps, oldest first; a torn last line is left out."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return []
        found: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def commit(self, state: RunState) -> None:
        """Make a step durable; when this returns, no crash can undo it.

        Raises:
            StorageError: if the disk refuses; the run can be resumed from the step before.
        """
        checkpoint.save(self.path / "checkpoints", state)
        path = self.path / "rounds.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(to_line(state.record) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise storage_error(path, error) from error

    def restore(self) -> RunState | None:
        """The newest sound state, with rounds.jsonl brought in line with it; None if nothing was committed."""
        state = checkpoint.newest(self.path / "checkpoints")
        lines = [record for record in self.records() if state is not None and record["step"] < state.step]
        if state is not None:
            lines.append(dict(state.record))
        content = "".join(to_line(line) + "\n" for line in lines)
        write_atomically(self.path / "rounds.jsonl", content.encode())
        return state


def new_folder(path: Path, scenario: Scenario, *, data_dir: Path | None, extra: Mapping[str, Any] = {}) -> RunFolder:
    """Begin a run folder.

    Raises:
        RunFolderError: if something is there already.
        StorageError: if it cannot be written.
    """
    if path.exists() and (not path.is_dir() or {one.name for one in path.iterdir()} - {LOCK}):
        raise RunFolderError(f"run folder {path}", "exists already", "resume it with --resume, or name another one")
    folder = RunFolder(path)
    config = {
        "fedstill": __version__,
        "data-dir": str(data_dir) if data_dir else "",
        **extra,
        "scenario": dump(scenario),
    }
    write_atomically(path / "config.toml", to_toml(config).encode())
    return folder


def begin_folder(path: Path | None, scenario: Scenario, *, data_dir: Path | None) -> RunFolder:
    """The folder to go on with if it holds this run already, else a new one; None makes one below runs/.

    Raises:
        RunFolderError: if something else is there.
        StorageError: if it cannot be written.
    """
    if path is not None and (path / "config.toml").is_file():
        return open_folder(path, scenario)
    return new_folder(path or fresh_path(scenario), scenario, data_dir=data_dir)


def fresh_path(scenario: Scenario) -> Path:
    """Where a run goes for which no folder is named: below runs/, by scenario, time and process."""
    return RUNS / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def open_folder(path: Path, scenario: Scenario | None = None) -> RunFolder:
    """Open the folder of a run.

    Args:
        path: the folder.
        scenario: the one it is expected to be of; None accepts any.

    Raises:
        RunFolderError: if it is none, or belongs to another scenario.
    """
    if not path.is_dir():
        raise RunFolderError(f"run folder {path}", "is not there", "see 'runs/' for the runs made here")
    folder = RunFolder(path)
    if scenario is not None:
        differing = differences(folder.config()["scenario"], dump(scenario))
        if differing:
            raise RunFolderError(
                f"run folder {path}",
                f"belongs to another scenario: {'; '.join(differing[:5])}",
                "resume without naming a scenario, or begin a new run",
            )
    return folder


def differences(mine: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """Keys in which two tables differ, as "key: mine / other"."""
    found: list[str] = []
    for key in sorted({*mine, *other}):
        left, right = mine.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {left} / {right}")
    return found
