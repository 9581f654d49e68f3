"""A federation for tests: real processes below a folder of the test's own, ended by their ids."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from fedstill.common.scenario import to_toml
from fedstill.server.deploy import writing
from fedstill.server.deploy.layout import Federation, Site
from fedstill.server.deploy.supervisor import Identity, began, children, read_state

COMMAND = [sys.executable, "-c", "from fedstill.simulations.cli import main; main()"]
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])) is not None


def new_federation(folder: Path, sites: Sequence[str], host: str = "localhost") -> Federation:
    """A federation on free ports of this machine."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    federation = Federation(folder, "test", host, *ports, tuple(sites))
    writing.init(federation)
    return federation


def own_data(site: Site, files: Path, public: Path) -> None:
    """Let a site be what its client.toml says, in place of a share of a data set that everybody reads."""
    for file in files.iterdir():
        shutil.copy(file, site.path)
    client = site.path / "client.toml"
    table = tomllib.loads(client.read_text(encoding="utf-8")) | {"public": str(public)}
    client.write_text(to_toml(table), encoding="utf-8")
    node = tomllib.loads(site.config.read_text(encoding="utf-8"))
    node = {key: value for key, value in node.items() if key != "config"} | {"site": "client.toml"}
    site.config.write_text(to_toml(node), encoding="utf-8")


def fedstill(*words: object, data_dir: Path | None = None, within: float = 400) -> subprocess.CompletedProcess[str]:
    """The command, as a user calls it."""
    environment = {**os.environ, "COLUMNS": "200"} | ({"FEDSTILL_DATA": str(data_dir)} if data_dir else {})
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=within, env=environment, check=False
    )


def process(federation: Federation, name: str) -> Identity:
    """A process that runs."""
    found = read_state(federation.processes).processes[name]
    assert found is not None
    return found


def started_by(federation: Federation, name: str, program: str) -> list[Identity]:
    """What a process has started, by a word of the command."""
    found = []
    for pid in children(process(federation, name).pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if program.encode() in command:
            found.append(Identity(pid, began(pid)))
    return found


def until(there: Callable[[], Any], within: float, what: str) -> Any:
    """Wait for something and give it."""
    deadline = time.monotonic() + within
    while not (found := there()):
        assert time.monotonic() < deadline, f"{what}: not within {within:g} s"
        time.sleep(0.1)
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    """Committed steps, without seconds, and without bytes, in which the length of the run's name counts."""
    path = folder / "rounds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "bytes")} for line in lines
    ]


def client(federation: Federation, certificate: Path | None) -> httpx.Client:
    """An HTTP client that trusts the federation's authority, with a certificate (NAME.crt and NAME.key) or none."""
    context = ssl.create_default_context(cafile=str(federation.authority))
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return httpx.Client(verify=context, base_url=f"https://localhost:{federation.port}", timeout=20)


def server_paths(federation: Federation) -> Mapping[str, list[str]]:
    """Every path of the SuperLink's own list, and its methods."""
    context = ssl.create_default_context(cafile=str(federation.authority))
    url = f"https://127.0.0.1:{federation.superlink_port}/openapi.json"
    found = httpx.get(url, verify=context, timeout=20).json()["paths"]
    return {path: [method.upper() for method in methods] for path, methods in found.items()}
