"""What Flower's own command says and does, as values: nodes, runs.

Its exit code tells little (0 for a run that failed), so its JSON is read. Each call is a process of its own, about two
seconds; the command is Flower's public interface, what it talks to is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common.environment import PROCESSES
from fedstill.common.errors import RunError
from fedstill.common.files import write_atomically
from fedstill.common.scenario import to_toml
from fedstill.server.deploy.identities import header_of
from fedstill.server.deploy.layout import Federation

SECONDS = 120.0
"""How long a call may take."""


_NODES = "nodes.json"


@dataclass(frozen=True, slots=True)
class Node:
    """A node that the SuperLink knows.

    Attributes:
        id: Flower's.
        name: the site's; "" for a node that was not let in by `register`.
        status: "registered", "online", "offline" or "unregistered".
        key: public node key by which it was let in, as a request's header has it; "" as for `name`.
        elapsed: seconds since it went on line for the last time; 0 if it never has.
    """

    id: str
    name: str
    status: str
    key: str = ""
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class FlowerRun:
    """A run that the SuperLink knows.

    Attributes:
        id: Flower's.
        status: such as "pending", "running", "finished:completed", "finished:failed".
        details: what went wrong.
        table: everything, as Flower has it.
    """

    id: str
    status: str
    details: str
    table: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status.startswith("finished")

    @property
    def completed(self) -> bool:
        """Whether it has ended well."""
        return self.status == "finished:completed"


def environment(federation: Federation) -> dict[str, str]:
    """The environment of Flower's processes on the server."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**PROCESSES, "FLWR_HOME": str(federation.server / "flwr"), "PATH": programs}


def nodes(federation: Federation) -> list[Node]:
    """The nodes that are registered, on line or not."""
    sites = {known["node"]: (site, known["key"]) for site, known in _known(federation).items()}
    found = []
    for one in _call(federation, "supernode", "list")["nodes"]:
        site, key = sites.get(one["node-id"], ("", ""))
        found.append(Node(one["node-id"], site, one["status"], key, float(one["online-elapsed"])))
    return found


def register(federation: Federation, site: str) -> str:
    """Let a site's node in; gives its id."""
    path = federation.node_key(site)
    number = str(_call(federation, "supernode", "register", str(path), "--name", site)["node-id"])
    # Flower's list says nothing of a node but its number.
    known = {**_known(federation), site: {"node": number, "key": header_of(path)}}
    write_atomically(federation.server / _NODES, json.dumps(known, indent=1).encode())
    return number


def unregister(federation: Federation, node: str) -> None:
    """Let a node in no more."""
    _call(federation, "supernode", "unregister", node)


def runs(federation: Federation) -> list[FlowerRun]:
    """All runs, the newest first."""
    return [_run(one) for one in _call(federation, "list")["runs"]]


def run(federation: Federation, number: str) -> FlowerRun:
    """One run."""
    return _run(_call(federation, "list", "--run-id", number)["runs"][0])


def start(federation: Federation, config: Mapping[str, str]) -> str:
    """Start a run with a run_config; gives its id."""
    path = federation.server / "flwr" / "run_config.toml"
    path.write_text(to_toml(dict(config)), encoding="utf-8")
    app = str(federation.server / "app")
    return str(_call(federation, "run", app, "here", "--run-config", str(path), superlink=False)["run-id"])


def stop(federation: Federation, number: str) -> None:
    """End a run."""
    _call(federation, "stop", number)


def _known(federation: Federation) -> dict[str, dict[str, str]]:
    """Nodes that were let in, by site: id and key."""
    path = federation.server / _NODES
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _run(table: Mapping[str, Any]) -> FlowerRun:
    return FlowerRun(table["run-id"], table["status"], table["status-details"], table)


def _connect(federation: Federation) -> None:
    """Tell Flower where the SuperLink is: with an absolute path, which is another one when the folder has moved."""
    connection = {
        "address": f"127.0.0.1:{federation.superlink_port}",
        "root-certificates": str((federation.server / "ca.crt").resolve()),
    }
    path = federation.server / "flwr" / "config.toml"
    text = to_toml({"superlink": {"default": "here", "here": connection}})
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text.encode())


def _call(federation: Federation, *words: str, superlink: bool = True) -> dict[str, Any]:
    """Call `flwr` and give what it says.

    Raises:
        RunError: if it cannot, with Flower's own words.
    """
    _connect(federation)
    command = [sys.executable, "-c", "from flwr.cli.app import app; app()", *words]
    command += [*(["here"] if superlink else []), "--format", "json"]
    what = f"flwr {' '.join(words[:2])}"
    try:
        done = subprocess.run(
            command,
            # Flower looks for an app in a folder of the connection's name first, below wherever one happens to be.
            cwd=federation.server,
            env={**os.environ, **environment(federation)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except subprocess.TimeoutExpired:
        raise RunError(what, f"said nothing within {SECONDS:g} s", "see run/superlink.log") from None
    except ValueError:
        raise RunError(what, f"said {(done.stdout + done.stderr).strip()[-300:]!r}", "see run/superlink.log") from None
    if not found.get("success"):
        raise RunError(what, str(found.get("error-message", "")).strip()[-400:], "is the federation up?")
    return found
