"""`fedstill run` and `fedstill resume`: runs on a federation, followed to their end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.simulations.console import (
    AsJson,
    Changes,
    DataDir,
    changed,
    complain,
    data_folder,
    make_console,
    print_json,
)

if TYPE_CHECKING:
    from fedstill.server.deploy.layout import Federation
    from fedstill.server.deploy.submitting import Submitted

FederationDir = Annotated[Path, typer.Option("--federation", metavar="DIR", help="The federation's folder.")]
Metrics = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Where the run's metrics are for Prometheus, while it goes on.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Submit the run and leave it to itself.")]


def run(
    scenario: Annotated[str, typer.Argument(help="A name ('fedstill list scenarios') or a TOML file.")],
    federation: FederationDir,
    changes: Changes = None,
    public: Annotated[
        Path | None, typer.Option(help="Folder of the public samples ('fedstill split'), in place of data sets.")
    ] = None,
    metrics: Metrics = "",
    detach: Detach = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario on a federation and follow it; exit code 4 if the run fails."""
    from fedstill.server.deploy.layout import open_federation
    from fedstill.server.deploy.submitting import submit

    one = open_federation(federation)
    wanted = changed(scenario, changes or [])
    submitted = submit(one, wanted, data_dir=data_folder(data_dir), public=public, metrics=metrics)
    _follow(one, submitted, detach=detach, as_json=as_json)


def resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, or with --federation its name.")],
    federation: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The federation's folder. [default: the one in which the run folder lies]"),
    ] = None,
    metrics: Metrics = "",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run of a federation from its last committed round, after its server was stopped or has died."""
    from fedstill.server.deploy.layout import federation_of, open_federation
    from fedstill.server.deploy.submitting import resume as go_on
    from fedstill.server.folder import open_folder

    one = open_federation(federation) if federation else federation_of(run_folder)
    path = run_folder if run_folder.is_dir() else one.runs / run_folder.name
    submitted = go_on(one, open_folder(path), metrics=metrics)
    _follow(one, submitted, detach=detach, as_json=as_json)


def _follow(federation: Federation, submitted: Submitted, *, detach: bool, as_json: bool) -> None:
    from fedstill.server.deploy.submitting import follow, refused
    from fedstill.server.summary import summary
    from fedstill.server.trackers.lines import step_line, step_notes
    from fedstill.server.wording import verdict

    console = make_console(stderr=as_json)
    console.print(f"run {submitted.id}, folder {submitted.folder.path}", highlight=False, soft_wrap=True)
    if detach:
        if as_json:
            print_json({"run": submitted.id, "folder": str(submitted.folder.path)})
        return

    shown = False

    def show(record: dict[str, object]) -> None:
        nonlocal shown
        if not shown:
            shown = True
            for site, why in refused(federation, submitted.folder).items():
                console.print(f"{site} does not take part: {why}", highlight=False, markup=False)
        last = submitted.folder.scenario().rounds.count + 1
        console.print(step_line(record, last), highlight=False)
        for note in step_notes(record):
            console.print(f"  {note}", highlight=False, markup=False)

    def idle(why: str) -> None:
        complain(
            f"no ServerApp has played the run for a minute ({why}): is the SuperExec well? Its log: run/superexec.log, "
            "journalctl -u fedstill-superexec, or docker compose logs superexec"
        )

    ended = follow(federation, submitted, show, idle)
    there = submitted.folder.path.is_dir() and submitted.folder.records()
    if there:
        console.print(verdict(summary(submitted.folder)), highlight=False)
    if as_json:
        told = summary(submitted.folder).table() if there else {}
        print_json({**told, "run": submitted.id, "folder": str(submitted.folder.path), "status": ended.status})
    if not ended.completed:
        complain(f"error: run {submitted.id}: {ended.status}: {ended.details}")
        if there:
            complain(f"go on with: fedstill resume {submitted.folder.path} --federation {federation.path}")
        raise typer.Exit(4)
