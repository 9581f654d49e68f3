"""`fedstill doctor`: what is wrong with this machine, or with this site of a federation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.common.errors import ConfigError
from fedstill.simulations.console import AsJson, DataDir, make_console, print_json

if TYPE_CHECKING:
    from fedstill.common.checkup import Check


def doctor(
    data_dir: DataDir = None,
    site: Annotated[
        Path | None, typer.Option(metavar="CLIENT.TOML", help="Check this site of a federation instead.")
    ] = None,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The federation's address: certificate and clock are checked.")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who signs the server's certificate (PEM).")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The node's private key.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The site's own certificate with its key (PEM), if it has one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, or a site of a federation; say what is wrong and the cure."""
    checks = _checks(data_dir, site, superlink, root_certificates, key, certificate)
    healthy = all(check.state != "wrong" for check in checks)
    if as_json:
        print_json({"healthy": healthy, "checks": [check.table() for check in checks]})
    else:
        _show(checks)
    if not healthy:
        raise typer.Exit(1)


def _checks(
    data_dir: Path | None,
    site: Path | None,
    superlink: str,
    root_certificates: Path | None,
    key: Path | None,
    certificate: Path | None,
) -> list[Check]:
    if site is None:
        if superlink or root_certificates or key or certificate:
            raise ConfigError("--superlink, --root-certificates, --key or --certificate", "expected --site with it")
        from fedstill.simulations.doctor import examine

        return examine(data_dir)
    from fedstill.client.connection import endpoint
    from fedstill.client.doctor import examine_site

    if not superlink and (root_certificates or key or certificate):
        raise ConfigError("--root-certificates, --key or --certificate", "expected --superlink HOST:PORT with it")
    named = (
        endpoint(superlink, root_certificates=root_certificates, key=key, certificate=certificate)
        if superlink
        else None
    )
    return examine_site(site, named)


def _show(checks: list[Check]) -> None:
    from rich.table import Table

    colours = {"right": "green", "note": "yellow", "wrong": "red"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in checks:
        cure = f"\n[dim]→ {check.cure}[/dim]" if check.cure else ""
        table.add_row(f"[{colours[check.state]}]{check.state}[/]", check.what, check.found + cure)
    make_console().print(table)
