"""The `fedstill` command. Heavy imports stay inside the commands, so that `--help` comes at once."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fedstill.common import __version__
from fedstill.common.errors import ConfigError, FedstillError
from fedstill.simulations.commands import deploy, doctor, export, predict, run, split
from fedstill.simulations.commands.serve import serve
from fedstill.simulations.console import (
    INTERRUPTED,
    AsJson,
    Changes,
    DataDir,
    changed,
    changes_of,
    complain,
    data_folder,
    find_run,
    make_console,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from fedstill.common.scenario import Scenario
    from fedstill.server.folder import RunFolder

app = typer.Typer(
    name="fedstill",
    help="Federated knowledge distillation: clients exchange predictions, not data or weights.",
    epilog="Exit codes: 0 done, 1 wrong or unhealthy, 2 bad input, 3 bad data, 4 a run that cannot go on, 5 disk, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


class Engine(StrEnum):
    """Where the clients of a simulated run work."""

    LOCAL = "local"


class Kind(StrEnum):
    """What `fedstill list` lists."""

    ALGORITHMS = "algorithms"
    TASKS = "tasks"
    MODELS = "models"
    TEACHERS = "teachers"
    CODECS = "codecs"
    QUERIES = "queries"
    SCENARIOS = "scenarios"


@app.command(
    epilog="Examples:  fedstill simulate digits  ·  fedstill simulate digits --set algorithm.name=dsfl --set seed=2  "
    "·  fedstill simulate my.toml --workers 2  ·  fedstill simulate --resume runs/digits-20260101-120000-7",
)
def simulate(
    scenario: Annotated[
        str | None,
        typer.Argument(help="A name ('fedstill list scenarios') or a TOML file. [default: digits]"),
    ] = None,
    changes: Changes = None,
    engine: Annotated[
        Engine, typer.Option(help="Where clients work; Flower's own runtime is 'flwr run .'.")
    ] = Engine.LOCAL,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the numbers do not depend on it.")] = 1,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run, from its last committed round.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run folder. [default: a new one below runs/]")] = None,
    sites: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="What 'fedstill split' wrote: every party reads its own files only."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a federation on this machine: every client trains alone, then they teach each other, round by round."""
    from fedstill.common.learning import one_thread

    one, folder, found = _prepared(scenario, changes or [], resume, run_dir, data_dir)
    sites = _sites(folder, sites)
    console = make_console(stderr=as_json)
    console.print(f"{one.name}: {one.description or 'no description'}", highlight=False)
    try:
        with one_thread():
            _play(one, folder, found, sites, workers, console)
    except KeyboardInterrupt:
        complain(f"interrupted; go on with: fedstill simulate --resume {folder.path}")
        raise typer.Exit(INTERRUPTED) from None
    except FedstillError:
        if folder.records():
            complain(f"what was committed is kept; go on with: fedstill simulate --resume {folder.path}")
        elif resume is None:
            folder.remove()
        raise
    _finish(folder, console, as_json=as_json)


def _play(
    scenario: Scenario, folder: RunFolder, data_dir: Path | None, sites: Path | None, workers: int, console: Console
) -> None:
    from fedstill.simulations import run
    from fedstill.simulations.progress import Progress

    progress = Progress(console, last=scenario.rounds.count + 1)
    try:
        run.simulate(
            scenario,
            folder,
            data_dir=data_dir,
            sites=sites,
            workers=workers,
            trackers=[progress],
            pulse=progress.pulse,
        )
    finally:
        progress.close()


def _sites(folder: RunFolder, named: Path | None) -> Path | None:
    """What split wrote for the run: as named, or as the run's folder knows it."""
    if named is not None:
        folder.add(sites=str(named.resolve()))
        return named
    stored = folder.config().get("sites")
    return Path(stored) if stored else None


def _finish(folder: RunFolder, console: Console, *, as_json: bool) -> None:
    from fedstill.server.summary import summary
    from fedstill.simulations.progress import show

    found = summary(folder)
    show(console, found)
    console.print(f"run folder  {folder.path}", highlight=False, soft_wrap=True)
    if folder.report.exists():
        console.print(f"report      {folder.report}  (open it in a browser)", highlight=False, soft_wrap=True)
    if (folder.path / "tensorboard").is_dir():
        console.print(
            f"events      tensorboard --logdir {folder.path / 'tensorboard'}", highlight=False, soft_wrap=True
        )
    if as_json:
        print_json({**found.table(), "folder": str(folder.path), "report": str(folder.report)})


def _prepared(
    name: str | None, changes: list[str], resume: Path | None, run_dir: Path | None, data_dir: Path | None
) -> tuple[Scenario, RunFolder, Path | None]:
    from fedstill.server.folder import fresh_path, new_folder, open_folder

    wanted = None
    if name is not None or resume is None:
        wanted = changed(name or "digits", changes)
    data_dir = data_folder(data_dir)
    if resume is not None:
        if run_dir is not None or (changes and wanted is None):
            raise ConfigError("--resume with --run-dir or --set", "a run goes on as it began", "leave them out")
        folder = open_folder(find_run(resume), wanted)
        stored = folder.config().get("data-dir")
        return folder.scenario(), folder, data_dir or (Path(stored) if stored else None)
    if wanted is None:
        raise ConfigError("no scenario", "expected a name or a file", "see 'fedstill list scenarios'")
    return wanted, new_folder(run_dir or fresh_path(wanted), wanted, data_dir=data_dir), data_dir


class Numbers(TyperCommand):
    """A command that takes `--seeds 1 2 3` for `--seeds 1,2,3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the whole numbers after --seeds."""
        joined: list[str] = []
        for word in args:
            listed = len(joined) > 1 and joined[-2] == "--seeds" and joined[-1].replace(",", "").isdecimal()
            if listed and word.isdecimal():
                joined[-1] += f",{word}"
            else:
                joined.append(word)
        return super().parse_args(ctx, joined)


@app.command(
    cls=Numbers,
    epilog="Examples:  fedstill compare digits --methods fedmd,dsfl --seeds 1 2 3  ·  fedstill compare digits heart "
    "--methods fedstill,dsfl --set rounds.count=4 --set dsfl.temperature=0.2 --workers 2 --run-dir runs/compared",
)
def compare(
    scenarios: Annotated[list[str], typer.Argument(help="Names ('fedstill list scenarios') or TOML files.")],
    methods: Annotated[
        str, typer.Option(help="Names ('fedstill list algorithms'), with commas.")
    ] = "fedstill,dsfl,fedmd",
    seeds: Annotated[str, typer.Option(help="Seeds of the runs.")] = "1,2,3",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of every scenario, or with METHOD.KEY an option of one method; may be given many times.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side, a process each.")] = 1,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Where runs and tables go; finished runs in it are kept. [default: a new one below runs/]"),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods over scenarios and seeds, with equal data, students and private training: one table, one page."""
    from fedstill.simulations.compare import command

    console = make_console(stderr=as_json, width=170)
    try:
        found = command.compare(
            scenarios,
            methods=_words(methods),
            seeds=[_whole(word) for word in _words(seeds)],
            changes=changes_of(changes or []),
            workers=workers,
            folder=run_dir,
            data_dir=data_folder(data_dir),
            console=console,
        )
    except KeyboardInterrupt:
        complain("interrupted; the same command with the same --run-dir goes on")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(found.table())
    if found.failed or not found.rows:
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole(word: str) -> int:
    if not word.isdecimal():
        raise ConfigError(f"--seeds {word}", "expected whole numbers >= 0", "for example --seeds 1 2 3")
    return int(word)


@app.command("list", epilog="Examples:  fedstill list  ·  fedstill list algorithms  ·  fedstill list scenarios --json")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list. [default: everything]")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what there is: algorithms, tasks, models, teachers, codecs, queries, scenarios; a line and a paper each."""
    from rich.table import Table

    from fedstill.simulations.catalogue import catalogue

    kinds = [kind] if kind else list(Kind)
    found = {str(one): catalogue(str(one)) for one in kinds}
    if as_json:
        print_json(found)
        return
    console = make_console()
    for title, entries in found.items():
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
        )
        for name, entry in entries.items():
            text = entry["what"] + (f"\n[dim]{entry['paper']}[/dim]" if entry.get("paper") else "")
            table.add_row(f"[cyan]{name}[/cyan]", text)
        console.print(table)
        console.print()


@app.command(epilog="Example:  fedstill report runs/digits-20260101-120000-7")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name below runs/.")],
    as_json: AsJson = False,
) -> None:
    """Write the report of a run anew, finished or under way, and say where it is."""
    from fedstill.server.folder import open_folder
    from fedstill.server.report import write_report
    from fedstill.server.summary import summary
    from fedstill.server.wording import verdict

    folder = open_folder(find_run(run))
    found = summary(folder)
    path = write_report(folder)
    if as_json:
        print_json({**found.table(), "folder": str(folder.path), "report": str(path)})
        return
    console = make_console()
    console.print(verdict(found), highlight=False)
    console.print(f"report  {path}", highlight=False, soft_wrap=True)


app.command(
    epilog="Examples:  fedstill doctor --data-dir ~/data  ·  fedstill doctor --site client.toml --superlink HOST:PORT "
    "--root-certificates ca.crt --key node.key"
)(doctor.doctor)
app.command(epilog="Example:  fedstill split heart parties --data-dir ~/data")(split.split)


app.add_typer(deploy.app)
app.command(epilog="Example:  fedstill node /etc/fedstill/node.toml")(deploy.node)
app.command(epilog="Example:  fedstill run heart --federation DIR --data-dir ~/data --set rounds.count=3")(run.run)
app.command(epilog="Example:  fedstill resume heart-20260101-120000-7 --federation DIR")(run.resume)
app.command(epilog="Example:  fedstill serve runs/digits-20260101-120000-7 --client client-3 --port 8001")(serve)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=predict.EXAMPLES)(predict.predict)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"fedstill {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command; an error on purpose is one line on standard error and an exit code, without a traceback."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        app()
    except FedstillError as error:
        complain(f"error: {error}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        # A device that only predicts has neither torch nor Flower.
        if error.name is None or error.name.startswith("fedstill"):
            raise
        complain(f"error: package '{error.name}': is not installed (pip install fedstill)")
        sys.exit(1)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)
