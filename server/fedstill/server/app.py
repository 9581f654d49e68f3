"""The Flower ServerApp: read the configuration, play the run, say what came of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedstill.common.scenario import from_run_config
from fedstill.server.folder import begin_folder
from fedstill.server.launch import launch
from fedstill.server.summary import summary
from fedstill.server.wording import verdict

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the run that Flower's run_config describes."""
    logging.getLogger("fedstill").setLevel(logging.INFO)
    config = context.run_config
    scenario = from_run_config(config)
    named = str(config.get("data-dir") or os.environ.get("FEDSTILL_DATA") or "")
    data_dir = Path(named) if named else None
    folder = begin_folder(Path(str(config["run-dir"])) if config.get("run-dir") else None, scenario, data_dir=data_dir)
    launch(scenario, grid, folder, data_dir=data_dir)
    log.info("%s", verdict(summary(folder)))
    log.info("run folder %s, report %s", folder.path.resolve(), folder.report.resolve())
