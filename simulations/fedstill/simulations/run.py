"""A simulated run from a scenario, on the local engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedstill.common.errors import ConfigError
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.folder import RunFolder
from fedstill.server.launch import launch
from fedstill.server.rounds import Pulse
from fedstill.server.state import RunState
from fedstill.server.trackers import Tracker
from fedstill.simulations.engine import LocalGrid
from fedstill.simulations.split import PUBLIC, site_files

CLIENT_APP = "fedstill.client.app:app"


def local_grid(
    scenario: Scenario, folder: RunFolder, *, data_dir: Path | None, sites: Path | None = None, workers: int = 1
) -> LocalGrid:
    """A grid of the scenario's clients, who keep their students in the run folder.

    Args:
        scenario: of the run.
        folder: of the run.
        data_dir: folder of data sets.
        sites: what `fedstill split` wrote, for clients that read their own files; None for simulated ones.
        workers: processes.

    Raises:
        ConfigError: if there are more or fewer sites than the scenario has clients.
    """
    own: list[dict[str, str]] = []
    if sites is not None:
        own = [{"site": str(path.resolve())} for path in site_files(sites)]
        if len(own) != scenario.clients.count:
            raise ConfigError(
                f"{len(own)} sites in {sites}", f"expected {scenario.clients.count}", f"set clients.count={len(own)}"
            )
    return LocalGrid(
        CLIENT_APP,
        clients=scenario.clients.count,
        node_configs=own,
        run_config={"toml": to_toml(dump(scenario)), "data-dir": str(data_dir or "")},
        node_config={"store": str(folder.clients.resolve())},
        workers=workers,
    )


def simulate(
    scenario: Scenario,
    folder: RunFolder,
    *,
    data_dir: Path | None = None,
    sites: Path | None = None,
    workers: int = 1,
    trackers: Sequence[Tracker] = (),
    pulse: Callable[[Pulse], None] = lambda _: None,
) -> RunState:
    """Play a scenario in a run folder, from where the folder stands.

    Args:
        scenario: what is to be done.
        folder: a new one (`new_folder`), or that of a run to go on with (`open_folder`).
        data_dir: folder of data sets.
        sites: what `fedstill split` wrote, for a rehearsal of a deployment: every party reads its own files only.
        workers: processes in which clients work; the numbers do not depend on it.
        trackers: told of every committed step.
        pulse: told of the progress inside a step.

    Raises:
        FedstillError: whatever keeps the run from its end; what was committed stays, and the run can be resumed.
    """
    grid = local_grid(scenario, folder, data_dir=data_dir, sites=sites, workers=workers)
    public = sites / PUBLIC if sites is not None else None
    try:
        return launch(scenario, grid, folder, data_dir=data_dir, public=public, trackers=trackers, pulse=pulse)
    finally:
        grid.close()
