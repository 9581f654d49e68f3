"""Faults for a federation of real processes, and what has to hold after each of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deployed import COMMAND, fedstill, own_data, process, records, started_by, until

from fedstill.common.errors import FedstillError
from fedstill.common.lock import held
from fedstill.common.scenario import Scenario, parse
from fedstill.common.sources import override, read_table
from fedstill.server.deploy import control, running
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.submitting import Submitted, submit
from fedstill.server.deploy.supervisor import (
    Identity,
    began,
    children,
    read_state,
    read_wanted,
    write_wanted,
)

SITES = ("north", "south", "east")

DEADLINE = 35.0
"""Seconds for the answers to one question; a round without a fault takes about 10, or twice that on a busy machine."""

SLACK = 30.0
"""Seconds by which a round may outlive its deadlines: the server's own work, and calls that wait for a SuperLink."""

CHANGES: Mapping[str, Any] = {
    "clients.count": 3,
    "clients.quorum": 0.6,
    "rounds.count": 1,
    "rounds.deadline": DEADLINE,
    "training.epochs": 3,
    "teacher.kind": "consensus",
    "tasks.digits.models": ["mlp-small", "linear-softmax"],
}


def words(changes: Mapping[str, Any]) -> list[str]:
    """Options of the command."""
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@dataclass(frozen=True, slots=True)
class Arena:
    """A federation whose sites have files of their own, and what a run without faults gives.

    Attributes:
        federation: up, with a node for each site.
        parties: what `fedstill split` has written.
    """

    federation: Federation
    parties: Path

    @property
    def public(self) -> Path:
        """The public pack."""
        return self.parties / "public"

    def give_data(self) -> None:
        """Split the data set, and let each site have its files."""
        done = fedstill("split", "digits", self.parties, "--sites", ",".join(SITES), *words(CHANGES))
        assert done.returncode == 0, done.stderr
        for site in SITES:
            own_data(self.federation.site(site), self.parties / "sites" / site, self.public)

    def reference(self, rounds: int) -> list[dict[str, Any]]:
        """Records of a run in which nothing went wrong, simulated on the same files."""
        folder = self.parties.parent / f"reference-{rounds}"
        if not folder.is_dir():
            changes = words({**CHANGES, "rounds.count": rounds})
            done = fedstill("simulate", "digits", "--sites", self.parties, *changes, "--run-dir", folder)
            assert done.returncode == 0, done.stderr
        return records(folder)

    def begin(self, **others: Any) -> Play:
        """Submit a run."""
        scenario = parse(override(read_table("digits"), {**CHANGES, **others}))
        return Play(self, scenario, submit(self.federation, scenario, public=self.public))

    def ledger(self, site: str, run: str) -> list[dict[str, Any]]:
        """What a site says it was asked and answered."""
        path = self.federation.site(site).path / "store" / "ledger" / f"{run}.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


@dataclass(slots=True)
class Play:
    """A run under way.

    Attributes:
        arena: where.
        scenario: of the run.
        submitted: as Flower knows it.
        seen: committed steps that were looked at; none of them may ever change.
    """

    arena: Arena
    scenario: Scenario
    submitted: Submitted
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the run folder."""
        return self.submitted.folder.name

    @property
    def steps(self) -> int:
        """How many a whole run has."""
        return self.scenario.rounds.count + 2

    def look(self) -> list[dict[str, Any]]:
        """The committed steps; what was there before is there still."""
        found = records(self.submitted.folder.path)
        assert found[: len(self.seen)] == self.seen, "a committed step was lost or changed"
        self.seen = found
        return found

    def wait(self, steps: int, within: float = 240) -> None:
        """Until so many steps are committed."""
        asked = time.monotonic()
        deadline = asked + within
        while len(self.look()) < steps:
            if time.monotonic() - asked > 15:
                asked = time.monotonic()
                stand = self._stand_if_known()
                assert stand is None or not stand.finished or len(self.look()) >= steps, stand
            assert time.monotonic() < deadline, f"step {steps - 1} is not committed within {within:g} s"
            time.sleep(0.1)

    def counted_again(self, site: str, since: int, begun: float, within: float = 240) -> float:
        """Seconds from a moment until a site's answer counts again, in a step of at least that number."""

        def there() -> bool:
            found = self.look()
            counts = any(site in step["accepted"] for step in found[since:])
            assert counts or len(found) < self.steps, f"{site} did not count again before the run's end"
            return counts

        until(there, within, f"{site} counts again")
        return time.monotonic() - begun

    def stand(self) -> control.FlowerRun:
        """How Flower has it."""
        return control.run(self.arena.federation, self.submitted.id)

    def _stand_if_known(self) -> control.FlowerRun | None:
        try:
            return self.stand()
        except FedstillError:
            return None

    def ended(self, within: float = 120) -> control.FlowerRun:
        """Wait until Flower has it as finished."""
        until(lambda: self.stand().finished, within, "the run ends")
        return self.stand()

    def resume(self) -> None:
        """Go on with it, by the command."""
        federation, path = self.arena.federation, self.submitted.folder.path
        done = fedstill("resume", path, "--federation", federation.path, "--detach", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        self.submitted = Submitted(json.loads(done.stdout)["run"], self.submitted.folder)

    def kill_at_random(self, times: int, seed: int) -> Counter[str]:
        """Kill whichever process of the server chance names, whatever it does; resume the run when it ends by that.

        Args:
            times: how often, if the run is not over before.
            seed: of chance.

        Returns:
            How often each was killed.
        """
        federation, chance, killed = self.arena.federation, random.Random(seed), Counter[str]()
        while killed.total() < times and len(self.look()) < self.steps:
            self._go_on()
            time.sleep(chance.uniform(0, 12))
            name = chance.choice(("proxy", "superlink", "superexec", "ServerApp"))
            playing = held(self.submitted.folder.path)
            if name == "ServerApp":
                for app in started_by(federation, "superexec", "flwr-serverapp"):
                    kill(app)
                    killed[name] += 1
            else:
                before = process(federation, name)
                kill(before)
                again(federation, name, before)
                killed[name] += 1
            if playing and name in ("superexec", "ServerApp"):
                until(lambda: not held(self.submitted.folder.path), 30, "the ServerApp ends")
                until(lambda: running.answers(federation), 60, "the SuperLink answers")
                self.resume()  # at once: Flower has the run as running for a minute still
        self._go_on()
        return killed

    def _go_on(self) -> None:
        """Wait until a ServerApp plays it or it is completed; resume it if it has failed."""
        path = self.submitted.folder.path

        def known() -> bool:
            stand = self._stand_if_known()
            return held(path) or (stand is not None and stand.finished)

        while True:
            until(known, 150, "a ServerApp plays the run")
            if held(path) or self.stand().completed:
                return
            self.resume()

    def check(self, *, whole: bool = False) -> None:
        """Wait for the run's end, then look at everything that has to hold whatever went wrong.

        Args:
            whole: whether everybody is to have counted in every step.
        """
        self.wait(self.steps, within=max(240, 25 * self.steps))
        assert self.ended().completed, self.stand()
        found, expected = self.look(), self.arena.reference(self.scenario.rounds.count)
        limits = self.scenario.rounds
        for step in found:
            assert len(step["accepted"]) == len(set(step["accepted"]))
            assert len(step["accepted"]) >= 2
            assert set(step["accepted"]) <= set(step["cohort"])
        lines = (self.submitted.folder.path / "rounds.jsonl").read_text().splitlines()
        for step in map(json.loads, lines):
            tries = len(step["abandoned"]) + 1
            assert step["seconds"] <= tries * (limits.deadline + limits.backoff) + SLACK, step
        for site in SITES:
            # A site answers a step in one way, and says so before the answer leaves.
            answered = [one["step"] for one in self.arena.ledger(site, self.name) if "answer" in one]
            assert len(answered) == len(set(answered))
            told = {"alone" if one["kind"] == "alone" else one["kind"] for one in found if site in one["accepted"]}
            assert told <= {step.split()[0] for step in answered}
        for mine, theirs in zip(found, expected, strict=True):
            if mine["accepted"] != theirs["accepted"]:
                break
            assert _numbers(mine) == _numbers(theirs)
        if whole:
            assert [step["accepted"] for step in found] == [step["accepted"] for step in expected]
        until(lambda: not orphans(self.arena.federation), 90, "nobody is left behind")


def _numbers(step: Mapping[str, Any]) -> dict[str, Any]:
    """A record without how often it was tried."""
    return {key: value for key, value in step.items() if key not in ("attempt", "abandoned", "rejected")}


def orphans(federation: Federation) -> list[int]:
    """Processes of a federation that its supervisor does not know."""
    state = read_state(federation.processes)
    assert state.supervisor is not None
    # Those that a supervisor has taken over are nobody's children.
    roots = {os.getpid(), state.supervisor.pid, *(one.pid for one in state.processes.values() if one is not None)}
    known = roots | {child for root in roots for child in children(root)}
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            theirs = os.readlink(one / "cwd").startswith(str(federation.path))
            theirs |= f"FLWR_HOME={federation.path}".encode() in (one / "environ").read_bytes()
        except OSError:
            continue
        if theirs and int(one.name) not in known and began(int(one.name)):
            found.append(int(one.name))
    return found


def kill(identity: Identity) -> float:
    """SIGKILL; gives the moment."""
    assert identity.alive()
    os.kill(identity.pid, signal.SIGKILL)
    return time.monotonic()


def again(federation: Federation, name: str, before: Identity, within: float = 60) -> Identity:
    """Wait for a process that was started again."""

    def there() -> Identity | None:
        now = read_state(federation.processes).processes[name]
        return now if now is not None and now != before and now.alive() else None

    found: Identity = until(there, within, f"{name} comes back")
    return found


def client_app(federation: Federation, site: str, known: Sequence[Identity], within: float = 60) -> Identity:
    """The next process that works on a message."""

    def there() -> Identity | None:
        found = [one for one in started_by(federation, f"node-{site}", "flwr-clientapp") if one not in known]
        return found[0] if found else None

    # Not `until`, which looks ten times a second.
    deadline = time.monotonic() + within
    while (found := there()) is None:
        assert time.monotonic() < deadline, f"no ClientApp of {site}"
        time.sleep(0.01)
    return found


def client_apps(federation: Federation, site: str) -> list[Identity]:
    """The processes of a site that work on messages now."""
    return started_by(federation, f"node-{site}", "flwr-clientapp")


def change_node(
    federation: Federation, site: str, *, before: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> None:
    """Let a site's node be another process: with other words before its command, or more in its environment."""
    name, wanted = f"node-{site}", read_wanted(federation.processes)
    now = process(federation, name)
    write_wanted(
        federation.processes,
        [
            replace(one, command=(*before, *one.command), environment={**one.environment, **environment})
            if one.name == name
            else one
            for one in wanted
        ],
    )
    _look_again(federation)
    again(federation, name, now)


@contextlib.contextmanager
def changed_node(
    federation: Federation, site: str, *, before: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> Iterator[None]:
    """A site's node as another process inside the block, and as it was after it."""
    wanted = read_wanted(federation.processes)
    change_node(federation, site, before=before, environment=environment)
    try:
        yield
    finally:
        write_wanted(federation.processes, wanted)
        _look_again(federation)
        until(lambda: read_wanted(federation.processes) == wanted and _is(federation, site), 60, "the node is back")


def _is(federation: Federation, site: str) -> bool:
    state = read_state(federation.processes)
    name = f"node-{site}"
    wanted = {one.name: one for one in read_wanted(federation.processes)}
    now = state.processes.get(name)
    return now is not None and now.alive() and state.digests[name] == wanted[name].digest


def _look_again(federation: Federation) -> None:
    supervisor = read_state(federation.processes).supervisor
    assert supervisor is not None
    supervisor.signal(signal.SIGHUP)


def online(federation: Federation, *sites: str, within: float = 150) -> None:
    """Wait until the SuperLink has those sites' nodes as on line."""

    def there() -> bool:
        return {one.name for one in control.nodes(federation) if one.status == "online"} >= set(sites)

    until(there, within, f"{', '.join(sites)} on line")


def server_log(federation: Federation, run: str) -> str:
    """What the ServerApp of a run has logged, which Flower keeps."""
    command = [sys.executable, "-c", "from flwr.cli.app import app; app()", "log", run, "here", "--show"]
    environment = {**os.environ, **control.environment(federation)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    return done.stdout + done.stderr


def at_start(folder: Path, code: str) -> dict[str, str]:
    """Environment in which every Python process runs some code before all else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "64m") -> Iterator[None]:
    """A folder with little room; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={size}", "fedstill-test", folder)
    try:
        yield
    finally:
        _call("umount", "--lazy", folder)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte is free on a folder's disk inside the block."""
    filler = folder / "filler"
    try:
        with open(filler, "wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        yield
    finally:
        filler.unlink()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with a link to this machine's.

    Attributes:
        name: of the namespace.
        link: this machine's end.
        host: this machine's address on it.
    """

    name: str
    link: str
    host: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Words before a command that is to run in it."""
        return "nsenter", f"--net=/run/netns/{self.name}", "--"

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """The link is down inside the block."""
        _call("ip", "link", "set", self.link, "down")
        try:
            yield
        finally:
            _call("ip", "link", "set", self.link, "up")


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Make one, and take it away; needs root."""
    number = os.getpid() % 250
    one = Namespace(f"fedstill-{os.getpid()}", f"fs{os.getpid()}h", f"10.213.{number}.1")
    other = f"fs{os.getpid()}n"
    _call("ip", "netns", "add", one.name)
    try:
        _call("ip", "link", "add", one.link, "type", "veth", "peer", "name", other, "netns", one.name)
        _call("ip", "address", "add", f"{one.host}/30", "dev", one.link)
        _call("ip", "link", "set", one.link, "up")
        for inside in (
            ("address", "add", f"10.213.{number}.2/30", "dev", other),
            ("link", "set", other, "up"),
            ("link", "set", "lo", "up"),
        ):
            _call("ip", "-n", one.name, *inside)
        yield one
    finally:
        _call("ip", "netns", "delete", one.name)


def _call(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, (command, done.stderr)


def node_command(config: Path, home: Path, log: Path) -> subprocess.Popen[bytes]:
    """`fedstill node`, as a site starts it; its words go to a file, which what it starts may hold longer."""
    with open(log, "wb") as stream:
        return subprocess.Popen(
            [*COMMAND, "node", str(config)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "FLWR_HOME": str(home), "COLUMNS": "200"},
        )
