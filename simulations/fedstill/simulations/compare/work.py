"""Plays the runs of a comparison in worker processes. A run that fails is counted, and the others go on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

from fedstill.common.errors import FedstillError, RunFolderError, UnsupportedError
from fedstill.common.learning import one_thread
from fedstill.common.scenario import Scenario, dump, parse, to_toml
from fedstill.server import checkpoint
from fedstill.server.folder import RunFolder, differences, new_folder
from fedstill.simulations.compare.plan import Cell, Plan

State = Literal["finished", "failed", "unfit"]
Standing = Literal["none", "broken", "under way", "finished"]

STEPS = "steps.jsonl"
"""Beside a run's records: how many optimiser steps each took."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run.

    Attributes:
        cell: the run.
        state: "finished", "failed", or "unfit" if it turned out before the first step that the method has no meaning.
        reason: why it is not finished.
        kept: it had been finished before.
    """

    cell: Cell
    state: State
    reason: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    """A run that is to be played."""

    cell: Cell
    path: Path
    toml: str
    data_dir: Path | None


def run_path(folder: Path, cell: Cell) -> Path:
    """Where a run of a comparison lies.

    Its last part goes with every message, so it is as long for every method.
    """
    return folder / "runs" / cell.name


def standing(path: Path, scenario: Scenario) -> Standing:
    """How far a run folder is, by its own commit marks: sound checkpoints, and a record of every step up to them.

    Raises:
        RunFolderError: if it belongs to another scenario.
    """
    if not path.exists():
        return "none"
    folder = RunFolder(path)
    try:
        table = folder.config()["scenario"]
        state = checkpoint.newest(path / "checkpoints")
        records = {record["step"]: record["kind"] for record in folder.records()}
    except RunFolderError:
        return "broken"
    differing = differences(table, dump(scenario))
    if differing:
        raise RunFolderError(
            f"run folder {path}",
            f"belongs to another scenario: {'; '.join(differing[:5])}",
            "compare in another --run-dir, or remove that run",
        )
    if state is None or any(step not in records for step in range(state.step)):
        return "broken"
    return "finished" if state.record["kind"] == records.get(state.step) == "finish" else "under way"


def play_all(
    plan: Plan, folder: Path, *, data_dir: Path | None, workers: int, told: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Play every run that is not finished yet.

    A run under way is gone on with from its last committed step, a broken one begun anew. Numbers do not depend on it.

    Args:
        plan: the comparison.
        folder: of the comparison; runs lie below `runs/` in it.
        data_dir: folder of data sets.
        workers: processes, with one run each.
        told: of every outcome, as it comes.

    Returns:
        All outcomes in the order of the plan.

    Raises:
        RunFolderError: if a run's folder belongs to another scenario; nothing is played then.
    """
    stands = [(cell, standing(run_path(folder, cell), cell.scenario)) for cell in plan.cells]
    outcomes: dict[str, Outcome] = {}
    for outcome in _outcomes(stands, folder, data_dir=data_dir, workers=workers):
        outcomes[outcome.cell.name] = outcome
        told(outcome)
    return [outcomes[cell.name] for cell in plan.cells]


def _outcomes(
    stands: Sequence[tuple[Cell, Standing]], folder: Path, *, data_dir: Path | None, workers: int
) -> Iterator[Outcome]:
    jobs = []
    for cell, stand in stands:
        path = run_path(folder, cell).resolve()
        if stand == "finished":
            yield Outcome(cell, "finished", kept=True)
            continue
        if stand == "broken":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        jobs.append(_Job(cell, path, to_toml(dump(cell.scenario)), data_dir))
    died: list[_Job] = []
    yield from _pooled(jobs, died, workers)
    # A process that dies takes its neighbours' runs with it: each is tried again alone, to find the culprit.
    for job in died:
        again: list[_Job] = []
        yield from _pooled([job], again, 1)
        if again:
            yield Outcome(job.cell, "failed", "the process died")


def _pooled(jobs: Sequence[_Job], died: list[_Job], workers: int) -> Iterator[Outcome]:
    """An outcome of each run that came to an end; those whose process died are added to `died`."""
    if not jobs:
        return
    # spawn: a fork would copy torch's threads in an undefined state.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_begin, initargs=(sys.path,)
    )
    try:
        futures = {pool.submit(_play, job.path, job.toml, job.data_dir): job for job in jobs}
        for future in as_completed(futures):
            try:
                state, reason = future.result()
            except BrokenProcessPool:
                died.append(futures[future])
                continue
            yield Outcome(futures[future].cell, state, reason)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(path: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, without a traceback
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.path[:] = path


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _play(path: Path, toml: str, data_dir: Path | None) -> tuple[State, str]:
    """Play a run in this process; whatever goes wrong is an answer."""
    try:
        with one_thread():
            play(path, toml, data_dir)
    except UnsupportedError as error:
        return ("failed" if RunFolder(path).records() else "unfit"), str(error)
    except FedstillError as error:
        return "failed", str(error)
    except Exception as error:
        return "failed", "".join(traceback.format_exception_only(error)).strip()
    return "finished", ""


def play(path: Path, toml: str, data_dir: Path | None) -> None:
    """Play one run in this process, from where its folder stands, and count its optimiser steps.

    Raises:
        FedstillError: whatever keeps the run from its end.
    """
    import tomllib

    from fedstill.server.launch import launch
    from fedstill.simulations.compare.steps import StepCounter
    from fedstill.simulations.engine import LocalGrid, load_app
    from fedstill.simulations.run import CLIENT_APP

    scenario = parse(tomllib.loads(toml))
    folder = RunFolder(path) if path.exists() else new_folder(path, scenario, data_dir=data_dir)
    counter = StepCounter(path / STEPS)
    try:
        grid = LocalGrid(
            counter.around(load_app(CLIENT_APP)),
            clients=scenario.clients.count,
            run_config={"toml": toml, "data-dir": str(data_dir or "")},
            node_config={"store": str(folder.clients)},
        )
        try:
            launch(scenario, grid, folder, data_dir=data_dir, trackers=[counter])
        finally:
            grid.close()
    finally:
        counter.close()
