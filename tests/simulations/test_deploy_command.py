"""`fedstill deploy` on a machine that has the authority's key and no SuperLink."""

from __future__ import annotations

import socket
from pathlib import Path

from typer.testing import CliRunner

from fedstill.server.deploy.identities import header_of
from fedstill.server.deploy.layout import open_federation
from fedstill.simulations.cli import app


def deploy(*words: str) -> str:
    done = CliRunner().invoke(app, ["deploy", *words])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_sites_change_where_no_superlink_is(tmp_path: Path) -> None:
    folder = str(tmp_path / "fed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    deploy("init", folder, "--sites", "north,south", "--superlink-port", port)
    key = header_of(open_federation(tmp_path / "fed").node_key("north"))

    told = [
        deploy(*words)
        for words in (("add-site", folder, "east"), ("renew", folder, "north"), ("revoke", folder, "south"))
    ]

    assert all("there: fedstill deploy register DIR" in one for one in told), told
    federation = open_federation(tmp_path / "fed")
    assert federation.sites == ("north", "east")
    door = (federation.server / "sites.conf").read_text()
    assert header_of(federation.node_key("north")) in door
    assert header_of(federation.node_key("east")) in door
    assert key not in door
    assert "CN=south" not in door


def test_an_upgrade_says_what_it_writes(tmp_path: Path) -> None:
    folder = tmp_path / "fed"
    deploy("init", str(folder), "--sites", "north")
    (folder / "server" / "nginx.conf").write_text("of an older version")

    told = deploy("upgrade", str(folder))

    assert f"written {folder / 'server' / 'nginx.conf'}" in told
    assert "README" not in told
    assert f"next fedstill deploy down {folder}" in told
    assert deploy("upgrade", str(folder)).startswith(f"same {folder}")
