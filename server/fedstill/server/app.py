"""The Flower ServerApp: read the configuration, play the run, say what came of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedstill.common.sources import from_run_config
from fedstill.server.folder import begin_folder
from fedstill.server.launch import launch
from fedstill.server.summary import summary
from fedstill.server.trackers.lines import Lines
from fedstill.server.wording import verdict

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the run that Flower's run_config describes."""
    _log_as_flower_does()
    config = context.run_config
    scenario = from_run_config(config)
    named = str(config.get("data-dir") or os.environ.get("FEDSTILL_DATA") or "")
    data_dir = Path(named) if named else None
    folder = begin_folder(Path(str(config["run-dir"])) if config.get("run-dir") else None, scenario, data_dir=data_dir)
    launch(scenario, grid, folder, data_dir=data_dir, trackers=[Lines(last=scenario.rounds.count + 1)])
    log.info("%s", verdict(summary(folder)))
    log.info("run folder %s, report %s", folder.path.resolve(), folder.report.resolve())


def _log_as_flower_does() -> None:
    """Show our log where Flower shows its own: `flwr run --stream`, `flwr log`."""
    ours = logging.getLogger("fedstill")
    ours.setLevel(logging.INFO)
    for handler in logging.getLogger("flwr").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
