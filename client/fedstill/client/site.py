"""What a site's administrator decides, in one file on the site's own machine: client.toml. No server changes it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fedstill.client.policy import Policy
from fedstill.common import check
from fedstill.common.data.pack import Pack
from fedstill.common.errors import ConfigError, nearest
from fedstill.common.registry import TASKS
from fedstill.common.scenario import build, option_names
from fedstill.common.task import Task

LONGEST_NAME = 100
"""Characters of a site's name; it is written to the files of every run."""

VARIABLE = "FEDSTILL_SITE"
"""Environment variable: path of client.toml, for a node whose --node-config names none."""

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class SiteTask:
    """One task that the site takes part in.

    Attributes:
        model: architecture of its student.
        examples: file of examples as `fedstill split` writes them, in the site's data folder; "" for a reader.
        holdout: share of what a reader reads that is kept aside to measure the student.
        reader: options of the task's kind in place of the pack's, such as `source`.
    """

    model: str
    examples: str = ""
    holdout: float = 0.2
    reader: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout={self.holdout}", "expected 0 <= value < 1")
        if self.examples and self.reader:
            raise ConfigError(
                f"examples='{self.examples}' beside {', '.join(sorted(self.reader))}",
                "expected a file of examples or the options of a reader",
                "leave one of them out",
            )


@dataclass(frozen=True, slots=True)
class Resources:
    """What the site gives to the work.

    Attributes:
        threads: of torch; numbers depend on it in the last bits.
        memory: bytes of data that the client's process may have; what does not fit is refused. 0 for no limit.
        seconds: that one message may take; work that takes longer is stopped and refused. 0 for no limit.
    """

    threads: int = 1
    memory: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check.at_least(1, resources_threads=self.threads)
        check.at_least(0, resources_memory=self.memory, resources_seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Site:
    """A whole client.toml; its paths are absolute once it is read.

    Attributes:
        name: of the site, its own in the federation.
        public: folder of the public pack.
        tasks: by name.
        data: the site's data folder; "" for that of client.toml.
        store: folder of students and of the ledger; no other process uses it.
        log_level: of what the client logs.
        copies: keep a copy of every answer that leaves, in the store's folder `sent`.
        policy, resources: see there.
    """

    name: str
    public: str
    tasks: Mapping[str, SiteTask]
    data: str = ""
    store: str = "store"
    log_level: Level = "info"
    copies: bool = False
    policy: Policy = field(default_factory=Policy)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= LONGEST_NAME or not self.name.isprintable():
            raise ConfigError(f"name = {self.name!r}", f"expected 1 to {LONGEST_NAME} printable characters")
        if not self.tasks:
            raise ConfigError("tasks = {}", "expected at least one task", "add a table [tasks.NAME]")

    def kind(self, pack: Pack, task: str) -> Task:
        """A task's kind as the site reads it.

        Raises:
            ConfigError: if the pack has no such task, or the kind no such option.
        """
        own = self.tasks[task].reader
        known = option_names(TASKS.get(pack.task(task).kind))
        for key in own:
            if key not in known:
                raise ConfigError(
                    f"unknown key 'tasks.{task}.{key}'",
                    "expected a key of this table",
                    nearest(key, {*known, *_OWN} - {"reader"}),
                )
        return pack.kind(task, own)


_SECTIONS: dict[str, type] = {"policy": Policy, "resources": Resources}
_OWN = [one.name for one in fields(SiteTask)]


def read_site(path: Path) -> Site:
    """A client.toml.

    Raises:
        ConfigError: if it is missing or no TOML; for an unknown key (naming the nearest), a wrong type or value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}", f"cannot be read: {error.strerror or error}", "name a client.toml") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}", f"is no TOML: {error}") from None
    return parse_site(table, path.resolve().parent)


def parse_site(table: Mapping[str, Any], folder: Path) -> Site:
    """A site from the tables of its file.

    Args:
        table: as TOML has them.
        folder: to which relative paths are relative.

    Raises:
        ConfigError: see `read_site`.
    """
    own = dict(table)
    for key in ("name", "public", "tasks"):
        if key not in own:
            raise ConfigError(f"client.toml without '{key}'", "expected one", "see docs/join.md")
    tasks = own["tasks"]
    if not isinstance(tasks, Mapping) or not all(isinstance(task, Mapping) for task in tasks.values()):
        raise ConfigError(f"tasks = {tasks!r}", "expected tables [tasks.NAME]")
    own["tasks"] = {name: _task(f"tasks.{name}", task) for name, task in tasks.items()}
    # Each table by itself: an unknown key in an inner one would pass unseen.
    own |= {key: build(kind, own[key], key) for key, kind in _SECTIONS.items() if key in own}
    for key, usual in (("public", ""), ("store", "store"), ("data", "")):
        value = own.get(key, usual)
        own[key] = str((folder / value).resolve()) if isinstance(value, str) else value
    site: Site = build(Site, own, "client.toml")
    return site


def _task(where: str, table: Mapping[str, Any]) -> SiteTask:
    if "model" not in table:
        raise ConfigError(f"{where} without 'model'", 'expected model = "…"', "see 'fedstill list models'")
    own = {key: value for key, value in table.items() if key in _OWN and key != "reader"}
    reader = {key: value for key, value in table.items() if key not in own}
    task: SiteTask = build(SiteTask, own | ({"reader": reader} if reader else {}), where)
    return task
