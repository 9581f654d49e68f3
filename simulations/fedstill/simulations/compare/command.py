"""What `fedstill compare` does: plan, play, tell, write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedstill.common.errors import RunFolderError
from fedstill.server.folder import RUNS
from fedstill.server.report.template import need_plots
from fedstill.server.wording import count
from fedstill.simulations.compare.comparison import Comparison, comparison
from fedstill.simulations.compare.page import NAMES, write_files
from fedstill.simulations.compare.plan import plan
from fedstill.simulations.compare.table import show
from fedstill.simulations.compare.work import Outcome, play_all

_STATES = {"finished": "finished", "failed": "FAILED", "unfit": "not applicable"}


def compare(
    scenarios: Sequence[str],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    changes: Mapping[str, Any],
    workers: int,
    folder: Path | None,
    data_dir: Path | None,
    console: Console,
) -> Comparison:
    """Play what is missing, and write and show the comparison.

    Args:
        scenarios: names or TOML files.
        methods: names of algorithms.
        seeds: of the runs.
        changes: see `plan`.
        workers: processes.
        folder: where runs and tables go; None makes one below runs/.
        data_dir: folder of data sets.
        console: where a line for each run and the table go.

    Raises:
        FedstillError: for a comparison that cannot begin; a run that fails is in the comparison.
    """
    need_plots()
    wanted = plan(scenarios, methods, seeds, changes)
    folder = folder or RUNS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder}", "expected a folder", "name another --run-dir")
    total, done = len(wanted.cells), 0
    console.print(f"{count(total, 'run')} in {folder}", highlight=False, soft_wrap=True)

    def told(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        state = "kept" if outcome.kept else _STATES[outcome.state]
        reason = f": {outcome.reason}" if outcome.reason else ""
        console.print(
            f"{done}/{total}  {outcome.cell.subject}, {outcome.cell.method}, seed {outcome.cell.seed}  {state}{reason}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    outcomes = play_all(wanted, folder, data_dir=data_dir, workers=workers, told=told)
    found = comparison(wanted, outcomes, folder)
    write_files(found, folder)
    show(console, found)
    console.print(f"written     {', '.join(str(folder / name) for name in NAMES)}", highlight=False, soft_wrap=True)
    return found
