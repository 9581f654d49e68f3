"""Submits a run to a federation and follows it to its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common.errors import FedstillError, RefusalError, RunError
from fedstill.common.lock import held, holder, only_process
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.deploy import control
from fedstill.server.deploy.control import FlowerRun
from fedstill.server.deploy.layout import Federation
from fedstill.server.folder import RunFolder, fresh_path, open_folder

ASK, ASK_PLAYED = 3.0, 30.0
"""Seconds between two questions how a run is, and while its ServerApp is at work: each is a process of its own, about
two seconds of a core that the run could use."""

IDLE = 60.0
"""Seconds after which it is told that nobody plays a run which has not ended."""

LOOK = 0.5
"""Seconds between two looks at the run folder, for committed rounds and for the lock that the ServerApp holds."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run under way.

    Attributes:
        id: Flower's.
        folder: the run folder.
    """

    id: str
    folder: RunFolder


def submit(
    federation: Federation,
    scenario: Scenario,
    *,
    data_dir: Path | None = None,
    public: Path | None = None,
    metrics: str = "",
    folder: Path | None = None,
) -> Submitted:
    """Start a run.

    Args:
        federation: where.
        scenario: what.
        data_dir: folder of data sets on the server, for a rehearsal.
        public: folder of the public samples, in place of a folder of data sets.
        metrics: address for Prometheus, such as "127.0.0.1:9464"; "" for none.
        folder: the run folder, to go on with a run; None for a new one.

    Raises:
        RunError: if the SuperLink does not answer or refuses.
    """
    path = folder or federation.runs / fresh_path(scenario).name
    config = {
        "toml": to_toml(dump(scenario)),
        "run-dir": str(path),
        "data-dir": str(data_dir.resolve()) if data_dir else "",
        "public": str(public.resolve()) if public else "",
        "metrics": metrics,
    }
    return Submitted(control.start(federation, config), RunFolder(path))


def resume(federation: Federation, folder: RunFolder, *, metrics: str = "") -> Submitted:
    """Go on with a run whose server has died or was stopped, from its last committed step.

    Whether it has is seen by the run folder's lock, which ends with its process: Flower notices a dead ServerApp only
    after a minute. Other runs do not matter.

    Raises:
        RunError: if a ServerApp still plays it, or the SuperLink does not answer.
    """
    config = open_folder(folder.path).config()
    try:
        with only_process(folder.path, patience=0):
            pass
    except RefusalError:
        found = f"process {holder(folder.path)} still plays it"
        raise RunError(f"run {folder.name}", found, "wait for its end, or stop it: flwr stop") from None
    _give_up(federation, str(config.get("flower", {}).get("run", "")))
    data, public = (Path(config[key]) if config.get(key) else None for key in ("data-dir", "public"))
    return submit(
        federation, folder.scenario(), data_dir=data, public=public, metrics=metrics, folder=folder.path.resolve()
    )


def _give_up(federation: Federation, number: str) -> None:
    """Let Flower know that a run is over whose ServerApp is dead: its nodes work for it no more."""
    for one in control.runs(federation):
        if one.id == number and not one.finished:
            control.stop(federation, number)


def follow(
    federation: Federation,
    submitted: Submitted,
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
    on_idle: Callable[[str], None] = lambda _: None,
) -> FlowerRun:
    """Wait for a run's end and tell of every step that is committed meanwhile.

    A SuperLink that does not answer for a while is no end: the run goes on without it.

    Args:
        federation: where.
        submitted: the run.
        on_step: told of every committed step.
        on_idle: told once if no ServerApp plays the run for `IDLE` seconds, and why it is not known to have ended.
    """
    folder = submitted.folder
    size = _size(folder)
    told = len(folder.records()) if size else 0
    asked = 0.0
    played, told_idle, why = time.monotonic(), False, ""
    while True:
        state: FlowerRun | None = None
        playing = held(folder.path)
        if playing:
            played = time.monotonic()
        elif not told_idle and time.monotonic() - played >= IDLE:
            told_idle = True
            on_idle(why)
        if time.monotonic() - asked >= (ASK_PLAYED if playing else ASK):
            try:
                state = control.run(federation, submitted.id)
                why = f"it is {state.status}"
            except FedstillError as error:
                why = str(error)
            asked = time.monotonic()
        if (now := _size(folder)) != size:
            records, size = folder.records(), now
            for record in records[told:]:
                on_step(record)
            told = len(records)
        if state is not None and state.finished:
            return state
        time.sleep(LOOK)


def refused(federation: Federation, folder: RunFolder) -> dict[str, str]:
    """Why nodes do not take part in a run, by the name of their site; by their id if it is not known."""
    told: dict[str, str] = folder.config().get("refused", {})
    names = {}
    if told:
        with contextlib.suppress(FedstillError):  # a SuperLink that is away for a while is no fault of the run's
            names = {one.id: one.name for one in control.nodes(federation) if one.name}
    return {names.get(node, f"node {node}"): why for node, why in told.items()}


def _size(folder: RunFolder) -> int:
    """Bytes of the file of committed steps."""
    try:
        return (folder.path / "rounds.jsonl").stat().st_size
    except FileNotFoundError:
        return 0
