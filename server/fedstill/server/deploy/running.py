"""Brings a federation up on one machine, says how it is, and ends what it has started."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common.errors import ConfigError, FedstillError, RunError
from fedstill.server.deploy import control, identities
from fedstill.server.deploy.control import FlowerRun, Node
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.supervisor import (
    Identity,
    State,
    Wanted,
    began,
    children,
    end,
    ending,
    read_state,
    read_wanted,
    write_wanted,
)
from fedstill.server.deploy.writing import superexec_arguments, superlink_arguments
from fedstill.server.folder import RunFolder

TRIES = 3
"""How often something may end before `up` waits for it no longer."""

_PLACES = ("/usr/sbin", "/usr/local/sbin", "/sbin")
"""Where a system keeps nginx, often outside a user's PATH."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a federation is.

    Attributes:
        processes: what runs here; by name, how often each was started, and its id or None.
        answers: whether the SuperLink answers.
        nodes: that are registered.
        runs: Flower's, the newest first.
        folders: run folders: name → committed steps of all steps.
        certificates: days until they end: of the server, the operator, and the sites whose folders are here.
    """

    processes: dict[str, dict[str, int | None]]
    answers: bool
    nodes: list[Node]
    runs: list[FlowerRun]
    folders: dict[str, dict[str, int]]
    certificates: dict[str, int]

    @property
    def healthy(self) -> bool:
        """The SuperLink answers, and every process that is to run does."""
        return self.answers and all(one["pid"] is not None for one in self.processes.values())

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "healthy": self.healthy,
            "superlink": self.answers,
            "processes": self.processes,
            "nodes": [{"id": one.id, "site": one.name, "status": one.status} for one in self.nodes],
            "runs": [{"id": one.id, "status": one.status, "details": one.details} for one in self.runs],
            "folders": self.folders,
            "certificates": self.certificates,
        }


@dataclass(frozen=True, slots=True)
class Admission:
    """What `register` has changed.

    Attributes:
        let_in: sites whose node was let in, or has another key now.
        shut_out: sites that are no more.
    """

    let_in: tuple[str, ...]
    shut_out: tuple[str, ...]


def up(
    federation: Federation,
    *,
    sites: Sequence[str],
    data_dir: Path | None,
    within: float = 90.0,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Start the server's processes and those sites' nodes, and wait until they are there.

    Args:
        federation: whose.
        sites: whose nodes run here; () on a server alone.
        data_dir: folder of data sets, for a rehearsal in which every party reads the same.
        within: seconds to wait for each.
        tell: is told what is under way.

    Raises:
        ConfigError: if nginx is not installed, a site is none of the federation's, or something ends again and again.
        RunError: if something does not come up in time; what runs stays, for a look at its log.
    """
    for site in sites:
        if site not in federation.sites:
            raise ConfigError(f"site '{site}'", f"expected one of {', '.join(federation.sites)}")
    wanted = _server(federation, data_dir)
    folder = federation.processes
    folder.mkdir(exist_ok=True)
    nodes = [_node(federation, site, data_dir) for site in sites]
    before = read_state(folder)
    running = {name for name, one in before.processes.items() if one is not None and one.alive()}
    # A node that is there already stays; the others begin when the SuperLink knows them.
    write_wanted(folder, [*wanted, *(one for one in nodes if one.name in running)])
    _supervise(federation)
    tell("waiting for the SuperLink")

    def there() -> bool:
        _check_staying(folder, before)
        return answers(federation)

    _until(there, within, "the SuperLink does not answer", folder / "superlink.log")
    register(federation)
    begun = time.monotonic()
    write_wanted(folder, [*wanted, *nodes])
    _nudge(federation)
    if sites:
        tell(f"waiting for {len(sites)} nodes")

        def on_line() -> bool:
            _check_staying(folder, before)
            found = [one for one in control.nodes(federation) if one.status == "online"]
            # One that was killed stays on line for Flower until its last heartbeat has run out.
            here = time.monotonic() - begun
            return {one.name for one in found if one.elapsed < here or f"node-{one.name}" in running} >= set(sites)

        _until(on_line, within, "not every node is on line", folder / "node-*.log")


def down(federation: Federation, *, patience: float = 0.0) -> list[str]:
    """End what `up` has started, and nothing else; gives the names of the processes that ran.

    Args:
        federation: whose.
        patience: seconds that a run under way has to finish its round; 0 ends it where it is. It can be resumed.
    """
    state = read_state(federation.processes)
    ran = [name for name, one in state.processes.items() if one is not None and one.alive()]
    playing = _server_apps(state)
    for one in playing if patience else ():
        one.signal(signal.SIGTERM)
    deadline = time.monotonic() + patience
    while any(one.alive() for one in playing) and time.monotonic() < deadline:
        time.sleep(0.25)
    if state.supervisor is not None and state.running:
        state.supervisor.signal(signal.SIGTERM)
        _until(lambda: not state.running, 120, "the supervisor does not end", federation.processes / "supervisor.log")
    # A supervisor that was killed has left them behind.
    left = read_state(federation.processes).processes
    for group in ending(read_wanted(federation.processes)) if left else ():
        end([found for name in group if (found := left.get(name)) is not None])
    # It may not have come to what was no more to run.
    end([found for found in left.values() if found is not None])
    return ran


def status(federation: Federation) -> Status:
    """How it is; what cannot be asked, because the SuperLink does not answer, is empty."""
    state = read_state(federation.processes)
    there = answers(federation)
    nodes, runs = (control.nodes(federation), control.runs(federation)) if there else ([], [])
    return Status(_processes(state), there, nodes, runs, _folders(federation), _certificates(federation))


def register(federation: Federation) -> Admission:
    """Let in every site's node by the key that it has now, and no more what has another key or no site.

    First at the door of a proxy that runs here, then at the SuperLink. So it does what `writing` has changed, here or
    on another machine that this folder was copied from.

    Raises:
        RunError: if the SuperLink does not answer.
    """
    reload_door(federation)
    keys = {site: identities.header_of(federation.node_key(site)) for site in federation.sites}
    known = [one for one in control.nodes(federation) if one.name and one.status != "unregistered"]
    old = [one for one in known if keys.get(one.name) != one.key]
    for one in old:
        control.unregister(federation, one.id)
    there = {one.name for one in known if one not in old}
    new = [site for site in federation.sites if site not in there]
    for site in new:
        control.register(federation, site)
    return Admission(tuple(new), tuple(one.name for one in old if one.name not in keys))


def reload_door(federation: Federation) -> None:
    """Let a proxy that runs here read again who may come in."""
    proxy = read_state(federation.processes).processes.get("proxy")
    if proxy is not None:
        proxy.signal(signal.SIGHUP)


def answers(federation: Federation, timeout: float = 2.0) -> bool:
    """Whether the SuperLink answers on loopback."""
    context = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    url = f"https://127.0.0.1:{federation.superlink_port}/health"
    try:
        with urllib.request.urlopen(url, timeout=timeout, context=context) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _server(federation: Federation, data_dir: Path | None) -> list[Wanted]:
    environment = control.environment(federation) | _data(data_dir)
    programs, path = Path(sys.executable).parent, str(federation.path)
    superlink = (sys.executable, "-m", "fedstill.server.deploy.superlink", *superlink_arguments(federation))
    superexec = (str(programs / "flower-superexec"), *superexec_arguments(federation))
    proxy = (
        _nginx(),
        "-p",
        f"{path}/",
        "-c",
        "server/nginx.conf",
        "-e",
        "run/nginx-error.log",
        "-g",
        f"daemon off;{_user()}",
    )
    return [
        Wanted("superlink", superlink, environment, path),
        Wanted("superexec", superexec, environment, path, ("superlink",)),
        Wanted("proxy", proxy, environment, path, ("superlink",)),
    ]


def _node(federation: Federation, name: str, data_dir: Path | None) -> Wanted:
    site = federation.site(name)
    environment = control.environment(federation) | _data(data_dir)
    environment |= {"FLWR_HOME": str(site.path / "flwr"), "FEDSTILL_STORE": str(site.path / "students")}
    command = (sys.executable, "-m", "fedstill.client.supernode", str(site.config))
    # Through the door a node says that it goes: else Flower has it on line for a minute, and lets in none in its place.
    return Wanted(f"node-{name}", command, environment, str(site.path), ("proxy",))


def _data(data_dir: Path | None) -> dict[str, str]:
    return {"FEDSTILL_DATA": str(data_dir.resolve())} if data_dir else {}


def _user() -> str:
    """Root's nginx works as somebody else, who may not write where root lets nobody in: here it stays who it is."""
    return f" user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};" if os.geteuid() == 0 else ""


def _nginx() -> str:
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), *_PLACES]))
    if found is None:
        raise ConfigError("the reverse proxy", "nginx is not installed", "apt install nginx-light")
    return found


def _supervise(federation: Federation) -> None:
    if read_state(federation.processes).running:
        _nudge(federation)
        return
    path = federation.processes / "supervisor.log"
    command = [sys.executable, "-m", "fedstill.server.deploy.supervisor", str(federation.processes)]
    with open(path, "ab") as log, open(os.devnull, "rb") as nothing:
        # It outlives this process, and is not this process's to wait for: no Popen.
        files = [(os.POSIX_SPAWN_DUP2, stream.fileno(), number) for number, stream in enumerate((nothing, log, log))]
        os.posix_spawn(command[0], command, os.environ, file_actions=files, setsid=True)
    _until(lambda: read_state(federation.processes).running, 30, "no supervisor", path)


def _nudge(federation: Federation) -> None:
    supervisor = read_state(federation.processes).supervisor
    if supervisor is not None:
        supervisor.signal(signal.SIGHUP)


def _check_staying(folder: Path, before: State) -> None:
    """Check that no process ends however often it is started, which no waiting mends.

    A SuperExec ends while there is no SuperLink, and a node while Flower still knows the one before it: of these only
    the exit code of a wrong file counts.

    Raises:
        ConfigError: if one has ended `TRIES` times since that state.
    """
    state = read_state(folder)
    for name, identity in state.processes.items():
        starts, since = state.starts[name], before.starts.get(name, 0)
        # Fewer than before: it is counted anew, by another supervisor or as another process.
        ended = (starts - since if starts >= since else starts) - (identity is not None)
        if ended >= TRIES and (name in ("superlink", "proxy") or state.exits[name] == ConfigError.exit_code):
            log = folder / f"{name}.log"
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-20:] or [""]
            told = next((line for line in reversed(said) if "error" in line.lower()), said[-1])
            raise ConfigError(f"{name} has ended {ended} times", f"it says: {told}", f"see {log}")


def _until(there: Callable[[], bool], seconds: float, otherwise: str, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if there():
                return
            why = ""
        except RunError as error:
            why = f" ({error})"
        if time.monotonic() >= deadline:
            raise RunError(otherwise, f"not within {seconds:g} s{why}", f"see {log}")
        time.sleep(0.25)


def _server_apps(state: State) -> list[Identity]:
    """The ServerApps of runs under way: what the SuperExec has started."""
    superexec = state.processes.get("superexec")
    if superexec is None or not superexec.alive():
        return []
    return [Identity(pid, began(pid)) for pid in children(superexec.pid)]


def _processes(state: State) -> dict[str, dict[str, int | None]]:
    return {
        name: {"pid": one.pid if one is not None and one.alive() else None, "starts": state.starts[name]}
        for name, one in state.processes.items()
    }


def _certificates(federation: Federation) -> dict[str, int]:
    named = {name: federation.server / f"{name}.crt" for name in ("server", "operator")}
    named |= {name: federation.site(name).certificate for name in federation.sites}
    return {name: identities.days_left(path) for name, path in named.items() if path.is_file()}


def _folders(federation: Federation) -> dict[str, dict[str, int]]:
    found = {}
    for path in sorted(federation.runs.iterdir()) if federation.runs.is_dir() else []:
        folder = RunFolder(path)
        try:
            steps = folder.scenario().rounds.count + 2
        except FedstillError:
            continue
        found[path.name] = {"committed": len(folder.records()), "steps": steps}
    return found
