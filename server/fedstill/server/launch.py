"""From a scenario to a finished run: build what the round engine needs, play, write the report."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.serverapp import Grid

from fedstill.common.errors import FedstillError, UnsupportedError
from fedstill.common.scenario import Plugin, Scenario, build
from fedstill.server.folder import RunFolder
from fedstill.server.holdings import packed, simulated
from fedstill.server.rounds import Pulse, Run, play
from fedstill.server.state import RunState
from fedstill.server.teacher import TEACHERS, Teacher
from fedstill.server.trackers import Tracker

log = logging.getLogger(__name__)


def launch(
    scenario: Scenario,
    grid: Grid,
    folder: RunFolder,
    *,
    data_dir: Path | None = None,
    public: Path | None = None,
    trackers: Sequence[Tracker] = (),
    pulse: Callable[[Pulse], None] = lambda _: None,
    committed: Callable[[RunState], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> RunState:
    """Play a scenario in a run folder, from where the folder stands, and write its report.

    Args:
        scenario: what is to be done.
        grid: Flower's way to the clients.
        folder: of the run.
        data_dir: folder of data sets, for a simulated run.
        public: folder of the public pack, for a run whose clients hold their own data; None for a simulated run.
        trackers: told of every committed step, beside TensorBoard's events.
        pulse: told of the progress inside a step.
        committed: given the state after every committed step.
        stopping: whether the run is to end at the border of the step under way.

    Raises:
        FedstillError: whatever keeps the run from its end; what was committed stays, and the run can be resumed.
    """
    tasks = simulated(scenario, data_dir) if public is None else packed(scenario, public)
    if public is not None:
        folder.add(public=str(public.resolve()))
    teacher = build_teacher(scenario.teacher)
    state = folder.restore()
    all_trackers = [*_tensorboard(folder), *trackers]
    run = Run(
        scenario=scenario,
        grid=grid,
        tasks=tasks,
        teacher=teacher,
        folder=folder,
        trackers=all_trackers,
        pulse=pulse,
        committed=committed,
        stopping=stopping,
    )
    try:
        ended = play(run, state)
    except BaseException:
        # What went wrong is told, not what it brings about in the report (a full disk, say).
        with contextlib.suppress(FedstillError, OSError):
            _wind_up(folder, all_trackers)
        raise
    _wind_up(folder, all_trackers)
    return ended


def _wind_up(folder: RunFolder, trackers: Sequence[Tracker]) -> None:
    for tracker in trackers:
        tracker.close()
    if folder.records():
        report(folder)


def build_teacher(plan: Plugin) -> Teacher:
    """The teacher that a scenario names, with its options.

    Raises:
        ConfigError: for an unknown name or option.
    """
    teacher: Teacher = build(TEACHERS.get(plan.name), plan.options, "teacher")
    return teacher


def report(folder: RunFolder) -> Path | None:
    """Write the report; None, with a line in the log, where what it is drawn with is not installed."""
    from fedstill.server.report import write_report

    try:
        return write_report(folder)
    except UnsupportedError as error:
        log.warning("%s", error)
        return None


def _tensorboard(folder: RunFolder) -> list[Tracker]:
    from fedstill.server.trackers.tensorboard import TensorBoard

    try:
        return [TensorBoard(folder.path / "tensorboard", committed=folder.records())]
    except UnsupportedError as error:
        log.warning("%s", error)
        return []
