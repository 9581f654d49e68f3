"""The Flower ServerApp: read the configuration, play the run, say what came of it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedstill.common.lock import only_process
from fedstill.common.logs import show_where_flower_does
from fedstill.common.sources import from_run_config
from fedstill.server.folder import begin_folder
from fedstill.server.heap import give_back
from fedstill.server.inbox import keep_beating
from fedstill.server.launch import launch
from fedstill.server.summary import summary
from fedstill.server.trackers import Tracker
from fedstill.server.trackers.lines import Lines
from fedstill.server.trackers.prometheus import Prometheus
from fedstill.server.wording import verdict

log = logging.getLogger(__name__)

METRICS_VARIABLE = "FEDSTILL_METRICS"
"""Environment variable: HOST:PORT at which a run answers Prometheus."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the run that Flower's run_config describes."""
    show_where_flower_does()
    keep_beating(grid)
    config = context.run_config
    scenario = from_run_config(config)
    named = str(config.get("data-dir") or os.environ.get("FEDSTILL_DATA") or "")
    data_dir = Path(named) if named else None
    public = Path(str(config["public"])) if config.get("public") else None
    path = Path(str(config["run-dir"])) if config.get("run-dir") else None
    with stopped_politely() as stopping, _alone(path):
        folder = begin_folder(path, scenario, data_dir=data_dir)
        if path is not None:
            folder.add(flower={"run": str(context.run_id)})
        last = scenario.rounds.count + 1
        trackers: list[Tracker] = [Lines(last=last)]
        if address := str(config.get("metrics") or os.environ.get(METRICS_VARIABLE) or ""):
            trackers.append(Prometheus(address, folder.name, last=last, committed=folder.records()))
        log.info("run %s", folder.name)
        launch(
            scenario,
            grid,
            folder,
            data_dir=data_dir,
            public=public,
            trackers=trackers,
            committed=lambda _: give_back(),
            stopping=stopping,
        )
    log.info("%s", verdict(summary(folder)))
    log.info("run folder %s", folder.path.resolve())
    if folder.report.is_file():
        log.info("report %s", folder.report.resolve())


def _alone(path: Path | None) -> contextlib.AbstractContextManager[None]:
    """Nobody else plays in a run folder that was named; one that was not is this process's by its name."""
    if path is None:
        return contextlib.nullcontext()
    return only_process(path, what="run folder", cure="wait for its end, or stop it")


@contextlib.contextmanager
def stopped_politely() -> Iterator[Callable[[], bool]]:
    """SIGTERM asks for an end at the border of the round; a second one ends at once, as Flower has it.

    Gives a function that says whether somebody has asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
