"""`fedstill split`: a scenario's data as the files of a federation's parties."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstill.simulations.console import AsJson, Changes, DataDir, changed, data_folder, make_console, print_json


def split(
    scenario: Annotated[str, typer.Argument(help="A name ('fedstill list scenarios') or a TOML file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    changes: Changes = None,
    sites: Annotated[
        str, typer.Option(help="Names of the sites, with commas, in place of the clients' own; seeds depend on them.")
    ] = "",
    public_only: Annotated[bool, typer.Option("--public-only", help="Write the public pack alone.")] = False,
    without_labels: Annotated[
        bool, typer.Option("--without-labels", help="Leave out the labels of public samples, which only measure.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a scenario's data as files: OUT/public for all parties, OUT/sites/NAME with a client.toml for each."""
    from fedstill.simulations.split import split as write

    dealt = write(
        changed(scenario, changes or []),
        out,
        data_dir=data_folder(data_dir),
        sites=[name.strip() for name in sites.split(",") if name.strip()],
        public_only=public_only,
        labels=not without_labels,
    )
    if as_json:
        print_json(
            {
                "public": str(dealt.pack.folder),
                "proxy-digests": dealt.pack.digests(),
                "sites": {name: str(path / "client.toml") for name, path in dealt.sites.items()},
                "clients": dict(dealt.clients),
            }
        )
        return
    console = make_console()
    console.print(f"public  {dealt.pack.folder}", highlight=False, soft_wrap=True)
    for name, path in dealt.sites.items():
        console.print(f"{name}  {path / 'client.toml'}", highlight=False, soft_wrap=True)
