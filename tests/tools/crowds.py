"""Runs with many light sites on a real SuperLink, SuperExec, ServerApp and reverse proxy, for tests and benchmarks."""

from __future__ import annotations

import base64
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attackers import Attacker, Diary
from deployed import new_federation
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from light_sites import Act, LightSite, Orders, Sites, honest
from malformed import KINDS

from fedstill.common.data.pack import read_pack
from fedstill.common.scenario import Scenario, parse
from fedstill.common.sources import override, read_table
from fedstill.server.deploy import identities, running
from fedstill.server.deploy.control import FlowerRun
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.submitting import follow, submit
from fedstill.server.deploy.supervisor import children, read_state
from fedstill.simulations.split import split

TASK = "digits"

Record = dict[str, Any]


@dataclass(slots=True)
class Memory:
    """Resident bytes of the server's processes.

    Attributes:
        federation: whose.
        most: at any time, by name.
        together: of all of them, at one time.
        steps: by name, when each step was committed.
    """

    federation: Federation
    most: dict[str, int] = field(default_factory=dict)
    together: int = 0
    steps: list[dict[str, int]] = field(default_factory=list)

    def now(self) -> dict[str, int]:
        """SuperLink, SuperExec and ServerApp."""
        known = read_state(self.federation.processes).processes
        pids = {name: one.pid for name, one in known.items() if one is not None and name in ("superlink", "superexec")}
        found = {name: _resident(pid) for name, pid in pids.items()}
        # Between two lives of a SuperExec there is none.
        found["serverapp"] = sum(map(_resident, children(pids["superexec"]))) if "superexec" in pids else 0
        for name, size in found.items():
            self.most[name] = max(self.most.get(name, 0), size)
        self.together = max(self.together, sum(found.values()))
        return found

    @contextmanager
    def watched(self, rounds: Path) -> Iterator[None]:
        """Look four times a second inside the block.

        Args:
            rounds: the run's file of committed steps.
        """
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.25):
                sizes = self.now()
                there = rounds.read_bytes().count(b"\n") if rounds.is_file() else 0
                self.steps += [sizes] * (there - len(self.steps))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _resident(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    except OSError:  # it has just ended
        pass
    return 0


@dataclass(frozen=True, slots=True)
class Played:
    """A run that has ended.

    Attributes:
        run: as Flower has it.
        records: committed steps.
        memory: of the server meanwhile.
    """

    run: FlowerRun
    records: Sequence[Record]
    memory: Memory


@dataclass(frozen=True, slots=True)
class World:
    """A federation that is up, and the data of its sites.

    Attributes:
        federation: the federation.
        parties: public pack, and files of each site.
    """

    federation: Federation
    parties: Path

    def site(self, name: str, act: Act = honest, *, poll: float) -> LightSite:
        """A light site with its own files."""
        own = {"site": str(self.parties / "sites" / name / "client.toml")}
        return LightSite(self.federation, self.federation.site(name), act, own, poll)

    def play(
        self, scenario: Scenario, sites: Sequence[LightSite], tell: Callable[[Record], None] = lambda _: None
    ) -> Played:
        """Play a run with these sites."""
        memory = Memory(self.federation)
        with Sites(sites) as there:
            submitted = submit(self.federation, scenario, public=self.parties / "public")
            with memory.watched(submitted.folder.path / "rounds.jsonl"):
                run = follow(self.federation, submitted, tell)
        for name, errors in there.failed.items():
            print(f"{name}: {len(errors)} times, such as {errors[0]!r}", file=sys.stderr)
        return Played(run, submitted.folder.records(), memory)


@contextmanager
def world(folder: Path, scenario: Scenario, sites: Sequence[str], copies: Mapping[str, str]) -> Iterator[World]:
    """A federation with these sites, up inside the block.

    Args:
        folder: a new one.
        scenario: whose data is dealt to the sites.
        sites: names, one for each client of the scenario.
        copies: further sites, which have the data of another one: its name by theirs.
    """
    parties = folder / "parties"
    for path in split(scenario, parties, data_dir=None, sites=sites).sites.values():
        client = path / "client.toml"
        client.write_text('log-level = "warning"\n' + client.read_text())
    for name, other in copies.items():
        place = parties / "sites" / name
        shutil.copytree(parties / "sites" / other, place)
        told = (place / "client.toml").read_text().replace(f'name = "{other}"', f'name = "{name}"')
        (place / "client.toml").write_text(told)
    federation = new_federation(folder / "federation", [*sites, *copies])
    try:
        running.up(replace(federation, sites=federation.sites[:1]), sites=(), data_dir=None, within=300)
        _register(federation, federation.sites[1:])
        yield World(federation, parties)
    finally:
        running.down(federation)


def _register(federation: Federation, sites: Sequence[str]) -> None:
    """Let sites in as `running.register` does, without a process for each."""
    authority = (federation.server / "ca.crt").read_bytes()
    client = ControlHttpClient.from_server_address(
        f"127.0.0.1:{federation.superlink_port}", False, authority, interceptors=[CliClientHttpInterceptor()]
    )
    for site in sites:
        key = base64.b64decode(identities.header_of(federation.site(site).path / "node.pub"))
        client.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
    client.close()


def scenario_of(**changes: object) -> Scenario:
    """The scenario of handwritten digits, small."""
    small = {"training.epochs": 1, "teacher.kind": "consensus", f"tasks.{TASK}.proxy": {"samples": 200}}
    return parse(override(read_table("digits"), {**small, **changes}))


# Many sites ----------------------------------------------------------------------------------------------------------


def many_sites(
    folder: Path, *, count: int, rounds: int, poll: float, tell: Callable[[Record], None] = lambda _: None
) -> Played:
    """A run of honest sites."""
    scenario = scenario_of(
        **{"clients.count": count, "rounds.count": rounds, f"tasks.{TASK}.partition": {"kind": "iid"}}
    )
    names = [f"site-{number}" for number in range(count)]
    with world(folder, scenario, names, {}) as here:
        return here.play(scenario, [here.site(name, poll=poll) for name in names], tell)


# Malformed contributions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attacked:
    """The same run without and with attackers.

    Attributes:
        alone, attacked: the runs.
        diary: what the attackers did.
        attackers: their names.
    """

    alone: Played
    attacked: Played
    diary: Diary
    attackers: Sequence[str]

    def reasons(self) -> dict[str, Counter[str]]:
        """For which reasons each kind was rejected, how often; "accepted" is one, too."""
        found: dict[str, Counter[str]] = {}
        for record in self.attacked.records:
            told = {one["client"]: one["reason"] for one in record["rejected"]}
            for name in set(self.attackers) & set(record["cohort"]):
                reason = "accepted" if name in record["accepted"] else told[name]
                kind = self.diary.sent.get((record["step"], name), "nothing sent")
                found.setdefault(kind, Counter())[reason] += 1
        return found

    def wrong(self) -> dict[str, Counter[str]]:
        """Kinds that were rejected for another reason than theirs, or not at all."""
        known = {name: set(map(str, kind.reasons)) for name, kind in KINDS.items()}
        return {name: found for name, found in self.reasons().items() if set(found) - known.get(name, set())}

    def same(self) -> bool:
        """Whether honest sites and the server measured the same, to the bit."""
        return honest_part(self.alone.records) == honest_part(self.attacked.records)


def honest_part(records: Sequence[Record]) -> list[Record]:
    """What depends on honest sites alone."""
    return [{key: record[key] for key in ("kind", "step", "attempt", "accepted", "tasks")} for record in records]


def attack(
    folder: Path,
    *,
    honest_sites: int,
    attackers: int,
    rounds: int,
    codec: str,
    seed: int,
    poll: float,
    deadline: float,
    silent: bool = True,
    samples: int = 20,
    tell: Callable[[Record], None] = lambda _: None,
) -> Attacked:
    """The same run without and with attackers; in its last round their answers never come whole, if `silent`."""
    names = [f"honest-{number}" for number in range(honest_sites)]
    strangers = [f"attacker-{number}" for number in range(attackers)]
    changes = {
        "rounds.count": rounds,
        "rounds.deadline": deadline,
        "rounds.largest-message": 2**20,
        "codec": codec,
        f"tasks.{TASK}.models": ["linear-softmax", "mlp-small"],
        f"tasks.{TASK}.proxy": {"samples": 100, "per-round": samples},
        f"tasks.{TASK}.partition": {"kind": "iid"},
    }
    dealt = scenario_of(**changes, **{"clients.count": honest_sites + 1})
    alone = scenario_of(**changes, **{"clients.count": honest_sites})
    count = honest_sites + attackers
    crowd = scenario_of(**changes, **{"clients.count": count, "clients.quorum": honest_sites / count - 1e-6})
    copies = dict.fromkeys(strangers[1:], strangers[0])
    with world(folder, dealt, [*names, strangers[0]], copies) as here:
        good = [here.site(name, poll=poll) for name in names]
        first = here.play(alone, good)
        classes = read_pack(here.parties / "public").task(TASK).classes
        diary = Diary()
        bad = []
        orders = Orders()
        for number, name in enumerate(strangers):
            act = Attacker(name, number, attackers, classes, seed, diary, silent=rounds if silent else 0)
            bad.append(replace(here.site(name, act, poll=poll), orders=orders))
        good = [here.site(name, poll=poll) for name in names]
        return Attacked(first, here.play(crowd, [*good, *bad], tell), diary, strangers)
