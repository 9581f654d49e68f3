"""What the commands share: options, the console, where a run lies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.common.errors import ConfigError, RunFolderError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from fedstill.common.scenario import Scenario

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="FEDSTILL_DATA", help="Folder of data sets.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the scenario; may be given many times."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def find_run(named: Path) -> Path:
    """A run's folder by its path, or by its name below runs/.

    Raises:
        RunFolderError: if there is none; the message names the nearest.
    """
    from fedstill.server.folder import RUNS

    for path in (named, RUNS / named):
        if path.is_dir():
            return path
    known = [path.name for path in RUNS.iterdir()] if RUNS.is_dir() else []
    raise RunFolderError(
        f"run '{named}'", "expected a run folder, or the name of one below runs/", nearest(named.name, known)
    )


def changes_of(words: list[str]) -> dict[str, Any]:
    """What `--set KEY=VALUE` says: values by dotted key.

    Raises:
        ConfigError: for a word without "=".
    """
    from fedstill.common.sources import value_of

    found = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {word}", "expected KEY=VALUE", "for example --set algorithm.temperature=2")
        found[key.strip()] = value_of(value)
    return found


def changed(name: str, changes: list[str]) -> Scenario:
    """A scenario by its name or file, with what --set changes.

    Raises:
        ConfigError: see `fedstill.common.scenario.parse`.
    """
    from fedstill.common.scenario import parse
    from fedstill.common.sources import override, read_table

    return parse(override(read_table(name), changes_of(changes)))


def data_folder(data_dir: Path | None) -> Path | None:
    """The folder that --data-dir names, as an absolute path.

    Raises:
        ConfigError: if it is none.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise ConfigError(f"--data-dir {data_dir}", "expected a folder", "name the folder that holds the data sets")
    return data_dir.resolve() if data_dir else None


def make_console(*, stderr: bool = False, width: int = 140) -> Console:
    """A console on standard output, or on standard error beside results for a program."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Files and pipes have no width of their own: lines and tables stay whole there.
    return Console(stderr=stderr, width=None if stream.isatty() else width)


def complain(text: str) -> None:
    """Say on standard error what went wrong."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print a result for a program."""
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
