"""`fedstill node`: what node.toml says, and what Flower's SuperNode is started with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedstill.client.supernode import arguments, read_node
from fedstill.common.errors import ConfigError
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.writing import init


@pytest.fixture
def site(tmp_path: Path) -> Path:
    federation = Federation(tmp_path / "fed", "test", "fl.example.org", 8443, 8000, ("a", "b"))
    init(federation)
    return federation.site("b").path


def test_what_deploy_writes_is_read(site: Path) -> None:
    node = read_node(site / "node.toml")
    assert (node.name, node.superlink, node.site) == ("b", "fl.example.org:8443", "")
    words = arguments(node)
    assert words[words.index("--node-config") + 1] == "partition-id=1 num-partitions=2"
    assert words[words.index("--auth-supernode-private-key") + 1] == str(site / "node.key")
    assert int(words[words.index("--port") + 1]) > 0
    assert "--insecure" not in words


def test_a_site_is_named_by_its_whole_path(site: Path) -> None:
    path = site / "node.toml"
    client = site / 'my "client".toml'
    client.write_text("")
    path.write_text(path.read_text().partition("[config]")[0] + "site = 'my \"client\".toml'\n")
    words = arguments(read_node(path))
    assert words[words.index("--node-config") + 1] == f"site={json.dumps(str(client))}"


def test_no_client_toml_is_passed_over(site: Path) -> None:
    path = site / "node.toml"
    (site / "client.toml").write_text("")
    with pytest.raises(ConfigError, match=r'write site = "client\.toml" in place of'):
        read_node(path)
    path.write_text('site = "client.toml"\n' + path.read_text())  # with both, the site counts
    assert read_node(path).site == str(site / "client.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "b"\nsuperlink = "h:1"\nsuperlnk = "x"\n', "did you mean 'superlink'"),
        ('name = "b"\n', "key 'superlink'"),
        ('name = 1\nsuperlink = "h:1"\n', "key 'name'"),
        ('name = "b"\nsuperlink = "h:1"\nkey = "none.key"\n', "none.key is not there"),
        ("no toml", "cannot be read"),
    ],
)
def test_what_cannot_be_used(site: Path, text: str, message: str) -> None:
    (site / "node.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_node(site / "node.toml")


def test_a_key_of_another_certificate(site: Path) -> None:
    (site / "site.key").write_bytes((site.parent / "a" / "site.key").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "fedstill.client.supernode", str(site / "node.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: certificate ")
    assert "cannot be used" in done.stderr
