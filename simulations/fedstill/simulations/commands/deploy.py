"""`fedstill deploy`: a federation's folder, its processes, its sites. `fedstill node`: one site's client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.common.errors import ConfigError
from fedstill.simulations.console import AsJson, DataDir, data_folder, make_console, print_json

if TYPE_CHECKING:
    from fedstill.server.deploy.layout import Federation
    from fedstill.server.deploy.running import Admission

app = typer.Typer(
    name="deploy",
    help="Set up a federation over a network, start and end it, see how it is.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PATIENCE = 900.0
"""Seconds that a run has to finish its round."""

SOON = 30
"""Days before its end from which a certificate is shown."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder.")]


@app.command(
    epilog="Example:  fedstill deploy init heart --sites cleveland,hungary,switzerland,va --host fl.example.org"
)
def init(
    folder: Folder,
    sites: Annotated[str, typer.Option(help="Names of the sites, with commas.")],
    host: Annotated[str, typer.Option(help="Name or address by which sites reach the server.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port that the sites connect to.")] = 8443,
    superlink_port: Annotated[int, typer.Option(help="The SuperLink's port, on loopback.")] = 8000,
    name: Annotated[str, typer.Option(help="Of the federation. [default: the folder's]")] = "",
) -> None:
    """Write what a federation needs: certificates, node keys, proxy, compose file, systemd units, a README of steps."""
    from fedstill.server.deploy.layout import Federation
    from fedstill.server.deploy.writing import init as write

    names = tuple(word.strip() for word in sites.split(",") if word.strip())
    one = Federation(folder.resolve(), name or folder.resolve().name, host, port, superlink_port, names)
    write(one)
    console = make_console()
    console.print(f"{folder}: federation '{one.name}' with {len(names)} sites, at {host}:{port}", highlight=False)
    console.print(f"next    {folder / 'README.md'}; all on this machine: fedstill deploy up {folder}", highlight=False)


@app.command(epilog="Examples:  fedstill deploy up heart --data-dir ~/data  ·  fedstill deploy up heart --no-sites")
def up(
    folder: Folder,
    no_sites: Annotated[bool, typer.Option("--no-sites", help="Only the server's processes.")] = False,
    sites: Annotated[str, typer.Option(help="Whose nodes run here, with commas. [default: all]")] = "",
    data_dir: DataDir = None,
) -> None:
    """Start SuperLink, SuperExec, reverse proxy and the sites' nodes on this machine, and wait until they are there."""
    from fedstill.server.deploy import running
    from fedstill.server.deploy.layout import open_federation

    if no_sites and sites:
        raise ConfigError("--no-sites with --sites", "expected one of them")
    one = open_federation(folder)
    names = () if no_sites else tuple(sites.split(",")) if sites else one.sites
    console = make_console()
    running.up(one, sites=names, data_dir=data_folder(data_dir), tell=lambda text: console.print(text, highlight=False))
    _show(one, as_json=False)


@app.command(epilog="Example:  fedstill deploy down heart")
def down(
    folder: Folder,
    at_once: Annotated[bool, typer.Option("--at-once", help="Let no run finish its round.")] = False,
) -> None:
    """End what `deploy up` has started, and nothing else; a run ends at the border of its round."""
    from fedstill.server.deploy import running
    from fedstill.server.deploy.layout import open_federation

    ended = running.down(open_federation(folder), patience=0.0 if at_once else PATIENCE)
    make_console().print(f"ended   {', '.join(ended) or 'nothing: nothing ran'}", highlight=False)


@app.command(epilog="Example:  fedstill deploy status heart --json")
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Show processes, nodes, runs and committed rounds; exit code 1 if something that is to run does not."""
    from fedstill.server.deploy.layout import open_federation

    if not _show(open_federation(folder), as_json=as_json):
        raise typer.Exit(1)


@app.command(epilog="Example:  fedstill deploy register heart")
def register(folder: Folder) -> None:
    """Let all sites' nodes in by the keys that they have now, and no others; after a change elsewhere, too."""
    from fedstill.server.deploy import running
    from fedstill.server.deploy.layout import open_federation

    _tell(running.register(open_federation(folder)))


@app.command("add-site", epilog="Example:  fedstill deploy add-site heart basel")
def add_site(folder: Folder, site: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Add a site: its folder with certificate and keys, and a place at the door."""
    from fedstill.server.deploy import writing
    from fedstill.server.deploy.layout import open_federation

    one = writing.add(open_federation(folder), site)
    make_console().print(f"made    {one.site(site).path}; it goes to the site", highlight=False)
    _take_effect(one)


@app.command(epilog="Example:  fedstill deploy revoke heart basel")
def revoke(folder: Folder, site: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Shut a site out: its certificate and key open nothing any more."""
    from fedstill.server.deploy import writing
    from fedstill.server.deploy.layout import open_federation

    one = writing.remove(open_federation(folder), site)
    make_console().print(f"removed {site}; its folder stays, as a record", highlight=False)
    _take_effect(one)


@app.command(epilog="Examples:  fedstill deploy renew heart  ·  fedstill deploy renew heart basel")
def renew(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Whose certificate and node key. [default: the server's]")] = "",
) -> None:
    """Make new certificates and keys, of the same authority, before the old ones end or when they may have leaked."""
    from fedstill.server.deploy import writing
    from fedstill.server.deploy.layout import open_federation

    one = open_federation(folder)
    writing.renew(one, site)
    console = make_console()
    if not site:
        console.print(f"renewed {one.server}", highlight=False)
        console.print(f"next    fedstill deploy down {folder}, fedstill deploy up {folder}", highlight=False)
        return
    console.print(f"renewed {one.site(site).path}; it goes to the site", highlight=False)
    _take_effect(one)


@app.command(epilog="Example:  fedstill deploy upgrade heart")
def upgrade(folder: Folder) -> None:
    """Write configuration as this version of fedstill has it; certificates, keys, node.toml and runs stay."""
    from fedstill.server.deploy import writing
    from fedstill.server.deploy.layout import open_federation

    console = make_console()
    changed = writing.upgrade(open_federation(folder))
    for path in changed:
        console.print(f"written {path}", highlight=False, soft_wrap=True)
    if not changed:
        console.print(f"same    {folder}: it is as this version would write it", highlight=False)
        return
    console.print("        what was there before lies beside each file, as .old", highlight=False)
    console.print(f"next    fedstill deploy down {folder}, fedstill deploy up {folder}", highlight=False)
    console.print(
        "        services: copy the units again, and systemctl daemon-reload; containers: docker compose up -d",
        highlight=False,
        soft_wrap=True,
    )


def _take_effect(federation: Federation) -> None:
    """Let what was written hold at the SuperLink, if it is here; if not, say how it will."""
    from fedstill.server.deploy import running

    if running.answers(federation):
        _tell(running.register(federation))
        return
    running.reload_door(federation)  # a proxy may be here without it, between two lives of the SuperLink
    make_console().print(
        "next    no SuperLink answers here: copy federation.toml and server/ to where it is, and there: "
        "fedstill deploy register DIR, and SIGHUP to nginx (systemctl reload fedstill-proxy)",
        highlight=False,
        soft_wrap=True,
    )


def _tell(admission: Admission) -> None:
    console = make_console()
    console.print(f"let in  {', '.join(admission.let_in) or 'nobody new'}", highlight=False)
    if admission.shut_out:
        console.print(f"shut out {', '.join(admission.shut_out)}", highlight=False)


def node(
    config: Annotated[Path, typer.Argument(metavar="NODE", help="The site's node.toml.")],
) -> None:
    """Take part in a federation as one of its sites, until ended: Flower's SuperNode over mutual TLS."""
    from fedstill.client.supernode import read_node, run

    run(read_node(config))


def _show(federation: Any, *, as_json: bool) -> bool:
    from rich.table import Table

    from fedstill.server.deploy import running

    found = running.status(federation)
    if as_json:
        print_json(found.table())
        return found.healthy
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, one in found.processes.items():
        restarts = f", started {one['starts']} times" if (one["starts"] or 0) > 1 else ""
        table.add_row("process", name, f"{one['pid'] or 'not there'}{restarts}")
    table.add_row("server", "SuperLink", "answers" if found.answers else "does not answer")
    for each in found.nodes:
        table.add_row("node", each.name or each.id, each.status)
    for run in found.runs:
        table.add_row("run", run.id, run.status + (f": {run.details}" if run.details not in ("", "N/A") else ""))
    for name, days in found.certificates.items():
        if days < SOON:
            what = f"ends in {days} days" if days >= 0 else "has ended"
            table.add_row("certificate", name, f"{what}: fedstill deploy renew")
    for name, steps in found.folders.items():
        table.add_row("folder", name, f"{steps['committed']} of {steps['steps']} steps committed")
    make_console().print(table)
    return found.healthy
