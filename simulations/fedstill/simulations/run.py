"""A simulated run from a scenario, on the local engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.folder import RunFolder
from fedstill.server.launch import launch
from fedstill.server.rounds import Pulse
from fedstill.server.state import RunState
from fedstill.server.trackers import Tracker
from fedstill.simulations.engine import LocalGrid

CLIENT_APP = "fedstill.client.app:app"


def local_grid(scenario: Scenario, folder: RunFolder, *, data_dir: Path | None, workers: int = 1) -> LocalGrid:
    """A grid of the scenario's clients, who keep their students in the run folder."""
    return LocalGrid(
        CLIENT_APP,
        clients=scenario.clients.count,
        run_config={"toml": to_toml(dump(scenario)), "data-dir": str(data_dir or "")},
        node_config={"store": str(folder.clients.resolve())},
        workers=workers,
    )


def simulate(
    scenario: Scenario,
    folder: RunFolder,
    *,
    data_dir: Path | None = None,
    workers: int = 1,
    trackers: Sequence[Tracker] = (),
    pulse: Callable[[Pulse], None] = lambda _: None,
) -> RunState:
    """Play a scenario in a run folder, from where the folder stands.

    Args:
        scenario: what is to be done.
        folder: a new one (`new_folder`), or that of a run to go on with (`open_folder`).
        data_dir: folder of data sets.
        workers: processes in which clients work; the numbers do not depend on it.
        trackers: told of every committed step.
        pulse: told of the progress inside a step.

    Raises:
        FedstillError: whatever keeps the run from its end; what was committed stays, and the run can be resumed.
    """
    grid = local_grid(scenario, folder, data_dir=data_dir, workers=workers)
    try:
        return launch(scenario, grid, folder, data_dir=data_dir, trackers=trackers, pulse=pulse)
    finally:
        grid.close()
