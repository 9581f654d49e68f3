"""`fedstill node`: a site's SuperNode, with the certificate that the federation's door asks for.

Flower's SuperNode knows the server's certificate, but has none of its own to show. It makes its connections with httpx:
here every one of them bears the site's certificate. What it starts for each message is Flower's `flwr-clientapp`, in
front of which `bundle` looks at the app that the server has sent.
"""

from __future__ import annotations

import http.client
import os
import ssl
import stat
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedstill.client import shim
from fedstill.client.connection import endpoint, knock
from fedstill.client.warm import start
from fedstill.common.environment import PROCESSES
from fedstill.common.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Node:
    """What node.toml says; paths are relative to it.

    Attributes:
        name: of the site, for logs.
        superlink: host and port of the federation's door.
        port: of the node's own interface on loopback; 0 takes a free one.
        ca: certificate of the authority.
        certificate, key: the site's.
        node_key: the private key by which Flower knows the node.
        site: client.toml, in which the site says what it has and what may leave it; "" in a rehearsal.
        warm: whether a process waits with everything loaded, so that no message waits for imports (see `warm`).
        config: further values for the ClientApp, such as `partition-id` in a rehearsal.
    """

    name: str
    superlink: str
    port: int = 0
    ca: str = "ca.crt"
    certificate: str = "site.crt"
    key: str = "site.key"
    node_key: str = "node.key"
    site: str = ""
    warm: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)


def read_node(path: Path) -> Node:
    """What a node.toml says, with absolute paths.

    Raises:
        ConfigError: if it cannot be read, has an unknown key, names a file that is not there, or does not name a
            client.toml that lies beside it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"node file {path}", f"cannot be read: {error}") from None
    known = [name.replace("_", "-") for name in Node.__dataclass_fields__]
    for key in table:
        if key not in known:
            raise ConfigError(f"key '{key}' in {path}", "expected a known one", nearest(key, known))
    for key in ("name", "superlink"):
        if not isinstance(table.get(key), str) or not table[key]:
            raise ConfigError(f"key '{key}' in {path}", "expected a text")
    if not isinstance(table.get("warm", True), bool):
        raise ConfigError(f"key 'warm' in {path}", "expected true or false")
    values = {key.replace("-", "_"): value for key, value in table.items()}
    folder = path.resolve().parent
    for key in ("ca", "certificate", "key", "node_key", "site"):
        named = values.get(key, Node.__dataclass_fields__[key].default)
        if named:
            values[key] = str(folder / named)
            if not Path(values[key]).is_file():
                raise ConfigError(f"{key.replace('_', '-')}='{named}' in {path}", f"{values[key]} is not there")
    node = Node(**values)
    if not node.site and "partition-id" in node.config and (folder / "client.toml").is_file():
        # Whoever has written one relies on what it forbids.
        raise ConfigError(
            f"{path} does not name the client.toml beside it",
            "expected a rehearsal by [config], or a site by its own file",
            'write site = "client.toml" in place of [config], or take client.toml away',
        )
    return node


def run(node: Node) -> None:
    """Be the site's SuperNode until it is ended; does not return.

    Raises:
        ConfigError: if certificate or node key cannot be used, are not let in, or the clock is wrong.
    """
    for name, value in PROCESSES.items():
        os.environ.setdefault(name, value)
    show_certificate(Path(node.ca), Path(node.certificate), Path(node.key))
    _knock(node)
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    # Not in a temporary folder: were it cleaned up, Flower's own program would be found, which looks at nothing.
    os.environ["PATH"] = os.pathsep.join([write_shim(home / "fedstill"), _programs(), os.environ.get("PATH", "")])
    if node.warm:
        start(home / "fedstill")
    sys.argv = ["flower-supernode", *arguments(node)]
    from flwr.supernode.cli import flower_supernode

    flower_supernode()


def _knock(node: Node) -> None:
    to = endpoint(
        node.superlink, root_certificates=Path(node.ca), key=Path(node.node_key), certificate=Path(node.certificate)
    )
    try:
        knock(replace(to, certificate_key=Path(node.key)))
    except (OSError, http.client.HTTPException) as error:
        print(f"{node.superlink} does not answer yet: {error}", file=sys.stderr)


def arguments(node: Node) -> list[str]:
    """Arguments of `flower-supernode`."""
    config = dict(node.config) | ({"site": node.site} if node.site else {})
    words = " ".join(f"{key}={_toml(value)}" for key, value in config.items())
    return [
        *("--superlink", node.superlink),
        *("--root-certificates", node.ca),
        *("--auth-supernode-private-key", node.node_key),
        *("--port", str(node.port or _free_port())),
        *(("--node-config", words) if words else ()),
    ]


def show_certificate(ca: Path, certificate: Path, key: Path) -> None:
    """Let every connection of this process that Flower makes over TLS show a certificate.

    Raises:
        ConfigError: if certificate or key cannot be used.
    """
    import httpx

    def context() -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(ca))
        made.load_cert_chain(certificate, key)
        return made

    try:
        context()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificate {certificate} with key {key}", f"cannot be used: {error}") from None
    before = httpx.Client

    class Client(before):  # type: ignore[valid-type, misc] # httpx's, whatever it was
        """httpx's client, with the certificate; plain connections on loopback have none."""

        def __init__(self, *, verify: Any = True, **others: Any) -> None:
            super().__init__(verify=context() if verify else verify, **others)

    httpx.Client = Client  # type: ignore[misc]


def write_shim(folder: Path) -> str:
    """A folder with a `flwr-clientapp` that looks at the app before it runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "flwr-clientapp"
    # Isolated, and without packages: it has to start at once.
    content = Path(shim.__file__).read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable} -IS\n{content}", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(folder)


def _programs() -> str:
    return str(Path(sys.executable).parent)


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _toml(value: object) -> str:
    import json

    # JSON's texts, numbers and truth values are TOML's, too.
    return json.dumps(value)


def main() -> None:
    """`python -m fedstill.client.supernode node.toml`."""
    from fedstill.common.errors import FedstillError

    try:
        run(read_node(Path(sys.argv[1])))
    except FedstillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
