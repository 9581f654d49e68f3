"""Starts the processes of a federation, restarts one that dies, and ends exactly those.

    python -m fedstill.server.deploy.supervisor DIR

What is to run stands in run/wanted.json, what runs in run/state.json. SIGHUP: look again at what is to run. SIGTERM:
end everything and leave. A process is known by its id and the time at which it began, so that an id which the system
has given to another process later is never mistaken for it. What a process has started ends with it.

A supervisor that was killed leaves its processes running. The next one takes over those that are still to run as they
are, and ends the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedstill.common.files import write_atomically

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before a process that has died is started again; doubled each time, until it has lived `SETTLED`."""

SETTLED = 30.0
"""Seconds after which a process counts as started well."""

GRACE = 20.0
"""Seconds from SIGTERM to SIGKILL."""

LOOK = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A process that is to run.

    Attributes:
        name: by which it is known; its log is NAME.log.
        command: program and arguments.
        environment: added to the supervisor's own.
        folder: in which it works.
        needs: names of those that end after it.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "."
    needs: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of everything: by it a supervisor knows whether what runs is what is to run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def ending(wanted: Sequence[Wanted]) -> Iterator[list[str]]:
    """Names in the order of their end: side by side, those that nobody who is left needs."""
    left = {one.name: one.needs for one in wanted}
    while left:
        needed = {name for needs in left.values() for name in needs}
        group = [name for name in left if name not in needed] or [*left]
        yield group
        left = {name: needs for name, needs in left.items() if name not in group}


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for another.

    Attributes:
        pid: its id.
        began: when it began, in clock ticks since the machine's start.
    """

    pid: int
    began: int

    def alive(self) -> bool:
        """Whether that very process runs still."""
        return self.began > 0 and began(self.pid) == self.began

    def signal(self, number: int) -> None:
        """Send a signal, if it is that process still."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def began(pid: int) -> int:
    """When a process began, in clock ticks since the machine's start; 0 if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def left_behind(pid: int) -> list[Identity]:
    """What runs still of the session that a process had begun, besides itself."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(stat.read_text(errors="replace").rpartition(")")[2].split()[3])
        except OSError:
            continue
        number = int(stat.parent.name)
        if session == pid and number != pid and began(number):
            found.append(Identity(number, began(number)))
    return found


def end(processes: Sequence[Identity], *, grace: float = GRACE) -> None:
    """End processes, side by side, then what they have started and left: SIGTERM, and after the grace SIGKILL."""
    started = [Identity(pid, began(pid)) for one in processes if one.alive() for pid in children(one.pid)]
    for group, seconds in ((processes, grace), (started, grace / 4)):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for one in group:
                one.signal(number)
            _wait(group, seconds)


def _wait(processes: Sequence[Identity], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(one.alive() for one in processes):
        time.sleep(LOOK / 4)


@dataclass(slots=True)
class _Child:
    wanted: Wanted
    process: subprocess.Popen[bytes] | None = None
    identity: Identity | None = None
    since: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0
    starts: int = 0
    last_exit: int | None = None


class Supervisor:
    """Keeps the wanted processes running."""

    def __init__(self, folder: Path) -> None:
        """Begin.

        Args:
            folder: "run", with wanted.json in it.
        """
        self._folder = folder
        self._children: dict[str, _Child] = {}
        self._told = ""
        self._look_again = True
        self._leave = False

    def run(self) -> None:
        """Work until SIGTERM."""
        self._adopt(read_state(self._folder))
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal)
        while not self._leave:
            if self._look_again:
                self._look_again = False
                self._take(read_wanted(self._folder))
            self._turn()
            self._tell()
            time.sleep(LOOK)
        for group in ending([child.wanted for child in self._children.values()]):
            self._end([self._children[name] for name in group])
        self._children.clear()
        self._tell()

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self._look_again = True
        else:
            self._leave = True

    def _take(self, wanted: Sequence[Wanted]) -> None:
        by_name = {one.name: one for one in wanted}
        for name, child in [*self._children.items()]:
            if by_name.get(name) != child.wanted:
                self._end([child])
                del self._children[name]
        for one in wanted:
            child = self._children.setdefault(one.name, _Child(one))
            # Whoever asks may have mended what it died of.
            child.due, child.pause = 0.0, FIRST_PAUSE

    def _adopt(self, state: State) -> None:
        wanted = {one.name: one for one in read_wanted(self._folder)}
        strangers = []
        for name, identity in state.processes.items():
            if identity is None or not identity.alive():
                continue
            if name in wanted and wanted[name].digest == state.digests.get(name):
                self._children[name] = _Child(wanted[name], None, identity, time.monotonic(), starts=state.starts[name])
            else:
                strangers.append(identity)
        end(strangers)

    def _turn(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.identity is not None and not child.identity.alive():
                # Before the process is waited for: its id is nobody else's yet.
                end(left_behind(child.identity.pid), grace=GRACE / 4)
                if now - child.since >= SETTLED:
                    child.pause = FIRST_PAUSE
                child.due, child.pause = now + child.pause, min(2 * child.pause, LONGEST_PAUSE)
                child.last_exit = child.process.wait() if child.process is not None else None
                child.process = child.identity = None
            if child.identity is None and now >= child.due:
                self._start(child)

    def _start(self, child: _Child) -> None:
        with open(self._folder / f"{child.wanted.name}.log", "ab") as log:
            try:
                child.process = subprocess.Popen(
                    child.wanted.command,
                    cwd=child.wanted.folder,
                    env={**os.environ, **child.wanted.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"{error}\n".encode())
                child.due, child.pause = time.monotonic() + child.pause, min(2 * child.pause, LONGEST_PAUSE)
                return
        child.identity = Identity(child.process.pid, began(child.process.pid))
        child.since = time.monotonic()
        child.starts += 1

    def _end(self, ending: Sequence[_Child]) -> None:
        end([child.identity for child in ending if child.identity is not None])
        for child in ending:
            if child.process is not None:
                child.process.wait()
            child.process = child.identity = None

    def _tell(self) -> None:
        state = {
            "supervisor": asdict(Identity(os.getpid(), began(os.getpid()))),
            "processes": {
                name: {
                    **(asdict(child.identity) if child.identity is not None else {}),
                    "starts": child.starts,
                    "exit": child.last_exit,
                    "digest": child.wanted.digest,
                }
                for name, child in self._children.items()
            },
        }
        text = json.dumps(state, indent=1)
        if text != self._told:
            write_atomically(self._folder / "state.json", text.encode(), durable=False)
            self._told = text


def write_wanted(folder: Path, wanted: Sequence[Wanted]) -> None:
    """Say what is to run."""
    text = json.dumps([asdict(one) for one in wanted], indent=1)
    write_atomically(folder / "wanted.json", text.encode(), durable=False)


def read_wanted(folder: Path) -> list[Wanted]:
    """What is to run."""
    found: list[dict[str, Any]] = json.loads((folder / "wanted.json").read_text(encoding="utf-8"))
    return [Wanted(**{**one, "command": tuple(one["command"]), "needs": tuple(one.get("needs", ()))}) for one in found]


@dataclass(frozen=True, slots=True)
class State:
    """What the supervisor said last.

    Attributes:
        supervisor: itself; None if there was none.
        processes: by name; None for one that is about to be started again.
        starts: how often each was started.
        exits: the code with which each ended last, negative for a signal; None if it has not, or nobody knows.
        digests: of what each was to be (`Wanted.digest`).
    """

    supervisor: Identity | None
    processes: Mapping[str, Identity | None]
    starts: Mapping[str, int]
    exits: Mapping[str, int | None] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether the supervisor is there."""
        return self.supervisor is not None and self.supervisor.alive()


def read_state(folder: Path) -> State:
    """What runs, by what the supervisor said last."""
    try:
        found = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return State(None, {}, {})
    processes = found["processes"]
    return State(
        Identity(**found["supervisor"]),
        {name: Identity(one["pid"], one["began"]) if "pid" in one else None for name, one in processes.items()},
        {name: one["starts"] for name, one in processes.items()},
        {name: one.get("exit") for name, one in processes.items()},
        {name: one.get("digest", "") for name, one in processes.items()},
    )


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1])).run()
