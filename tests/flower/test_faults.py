"""Faults of a deployed federation: killed and stopped processes, links, disks, clocks, versions, certificates, keys.

After each of them: the round ends by its deadline, every answer counts once, no committed step is lost, the run
completes, with the numbers of a run without faults where the same clients count. `make test-faults` shows what was
observed as a table; `make test` plays those that are not marked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed import NGINX, fedstill, new_federation, process, started_by, until
from faults import (
    DEADLINE,
    SITES,
    Arena,
    Namespace,
    again,
    at_start,
    changed_node,
    client_app,
    client_apps,
    full,
    kill,
    namespace,
    node_command,
    online,
    server_log,
    small_disk,
)

from fedstill.common.lock import held
from fedstill.server.deploy import control, identities, running
from fedstill.server.deploy.submitting import refused
from fedstill.server.deploy.supervisor import read_state

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NGINX, reason="nginx is not installed")]

# Cases have more rounds than the fault takes, on a machine where a round takes four seconds.
faults = pytest.mark.faults
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root: network namespaces, mounts")

Observed = Callable[..., None]


@pytest.fixture(scope="module")
def link() -> Iterator[Namespace | None]:
    """A network namespace for a node; None without root."""
    if not ROOT:
        yield None
        return
    with namespace() as one:
        yield one


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, link: Namespace | None) -> Iterator[Arena]:
    """One federation for all faults, up; with root, run folders and a site's store have small disks of their own."""
    folder = tmp_path_factory.mktemp("faults")
    federation = new_federation(folder / "fed", SITES, link.host if link else "localhost")
    one = Arena(federation, folder / "parties")
    one.give_data()
    with contextlib.ExitStack() as stack:
        if ROOT:
            stack.enter_context(small_disk(federation.runs))
            stack.enter_context(small_disk(federation.site("north").path / "store"))
        try:
            running.up(federation, sites=SITES, data_dir=None, within=120)
            yield one
        finally:
            for log in sorted(federation.processes.glob("*.log")):
                print(f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            running.down(federation)


@pytest.fixture(autouse=True)
def everybody_there(arena: Arena) -> None:
    """A case begins with every process alive and every node on line."""
    online(arena.federation, *SITES)


def test_a_proxy_is_killed(arena: Arena, observed: Observed) -> None:
    play = arena.begin()
    play.wait(1)
    before = process(arena.federation, "proxy")
    begun = kill(before)
    again(arena.federation, "proxy", before)
    there = time.monotonic() - begun
    play.check(whole=True)
    observed("nginx killed in a run", "nobody misses a round", f"{there:.1f} s until it is there again")


@faults
def test_a_superlink_is_killed(arena: Arena, observed: Observed) -> None:
    play = arena.begin()
    play.wait(1)
    before = process(arena.federation, "superlink")
    begun = kill(before)
    again(arena.federation, "superlink", before)
    there = time.monotonic() - begun
    play.wait(2)
    step = time.monotonic() - begun
    play.check()
    observed(
        "SuperLink killed in a round",
        "SuperExec, ServerApp and nodes outlive it and go on with the same run",
        f"{there:.1f} s until it is there, {step:.0f} s until the next commit",
    )


@faults
def test_a_supernode_is_killed(arena: Arena, observed: Observed) -> None:
    play = arena.begin(**{"rounds.count": 14})
    play.wait(1)
    before = process(arena.federation, "node-south")
    begun = kill(before)
    again(arena.federation, "node-south", before)
    there = time.monotonic() - begun
    counts = play.counted_again("south", 1, begun)
    play.check()
    observed(
        "SuperNode killed in a round",
        "that round ends without it by its deadline or at once",
        f"{there:.1f} s until it is there, {counts:.0f} s until it counts again",
    )


@faults
def test_a_superexec_is_killed(arena: Arena, observed: Observed) -> None:
    play = arena.begin(**{"rounds.count": 4})
    play.wait(2)
    before = process(arena.federation, "superexec")
    begun = kill(before)
    again(arena.federation, "superexec", before)
    there = time.monotonic() - begun
    until(lambda: not held(play.submitted.folder.path), 30, "its ServerApp ends")
    committed = len(play.look())
    begun = time.monotonic()
    play.resume()
    play.wait(committed + 1)
    step = time.monotonic() - begun
    play.check(whole=True)
    observed(
        "SuperExec killed in a round",
        "its ServerApp ends with it; `fedstill resume` goes on at once, with the same numbers",
        f"{there:.1f} s until it is there, {step:.0f} s from resume to the next commit",
    )


@faults
def test_a_serverapp_is_killed(arena: Arena, observed: Observed) -> None:
    play = arena.begin(**{"rounds.count": 4})
    play.wait(2)
    path = play.submitted.folder.path
    refused = fedstill("resume", path, "--federation", arena.federation.path)
    assert refused.returncode == 4
    assert "still plays it" in refused.stderr
    (app,) = started_by(arena.federation, "superexec", "flwr-serverapp")
    kill(app)
    begun = time.monotonic()
    committed = len(play.look())
    first = play.submitted.id
    play.resume()  # at once: Flower has the run as running for a minute still
    play.wait(committed + 1)
    step = time.monotonic() - begun
    play.check(whole=True)
    dead = control.run(arena.federation, first)
    assert dead.finished
    assert not dead.completed
    observed(
        "ServerApp killed in a round",
        "`fedstill resume` goes on at once, with the same numbers; the dead run is stopped",
        f"{step:.0f} s from resume to the next commit",
    )


@faults
@pytest.mark.parametrize("seed", [1, 2])
def test_server_processes_are_killed_at_random(arena: Arena, observed: Observed, seed: int) -> None:
    play = arena.begin(**{"rounds.count": 20})
    begun = time.monotonic()
    killed = play.kill_at_random(20, seed)
    play.check()
    took, whole = time.monotonic() - begun, sum(len(step["accepted"]) == len(SITES) for step in play.look())
    told = ", ".join(f"{name} {count} times" for name, count in sorted(killed.items()))
    observed(
        f"processes of the server killed at random, chance {seed}: {told}",
        f"resumed whenever the run had failed, it completes; {whole} of {play.steps} steps with everybody",
        f"{took:.0f} s for the run",
    )


@faults
@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_a_clientapp_is_killed(arena: Arena, observed: Observed, moment: str) -> None:
    play = arena.begin(**{"rounds.count": 3})
    play.wait(1)
    app = client_app(arena.federation, "north", client_apps(arena.federation, "north"))

    def lines() -> int:
        return len([one for one in arena.ledger("north", play.name) if one["step"] == "round 1"])

    wanted = {"before": 0, "while": 1, "after": 2}[moment]
    end = time.monotonic() + 60
    while lines() < wanted:
        assert app.alive()
        assert time.monotonic() < end
    begun = kill(app)
    done = lines()
    counts = play.counted_again("north", 1, begun)
    play.check()
    step = play.look()[1]
    missed = "its answer counts once" if "north" in step["accepted"] else f"round 1 without it: {_why(step, 'north')}"
    assert done == wanted or moment == "while"
    observed(
        f"ClientApp killed {moment} {'it works' if moment == 'while' else 'its work'}",
        missed,
        f"{counts:.0f} s until it counts again",
    )


def _why(step: dict[str, object], site: str) -> str:
    rejected = step["rejected"]
    assert isinstance(rejected, list)
    return str({one["client"]: one["reason"] for one in rejected}[site])


@faults
def test_a_supernode_is_stopped_for_a_minute(arena: Arena, observed: Observed) -> None:
    play = arena.begin(**{"rounds.count": 12})
    play.wait(1)
    node = process(arena.federation, "node-north")
    frozen = [node, *started_by(arena.federation, "node-north", "")]
    for one in frozen:
        one.signal(signal.SIGSTOP)
    begun, committed = time.monotonic(), len(play.look())
    try:
        play.wait(committed + 1)
        step = time.monotonic() - begun
        until(lambda: time.monotonic() - begun >= 60, 61, "a minute")
    finally:
        for one in frozen:
            one.signal(signal.SIGCONT)
    ended, since = time.monotonic(), len(play.look())
    assert step <= DEADLINE + 20
    counts = play.counted_again("north", since, ended)
    play.check()
    late = [one["reason"] for record in play.look() for one in record["rejected"] if one["client"] == "north"]
    observed(
        "SuperNode and ClientApp stopped (SIGSTOP) for 60 s",
        f"rounds end by their deadline without it ({', '.join(sorted(set(late)))})",
        f"{counts:.0f} s from SIGCONT until it counts again",
    )


@faults
@needs_root
def test_a_link_is_down(arena: Arena, observed: Observed, link: Namespace) -> None:
    with changed_node(arena.federation, "east", before=link.inside):
        online(arena.federation, "east")
        play = arena.begin(**{"rounds.count": 3})
        play.wait(1)
        with link.cut():
            begun, since = time.monotonic(), len(play.look())
            until(lambda: time.monotonic() - begun >= 20, 21, "20 s")
        ended = time.monotonic()
        counts = play.counted_again("east", since, ended)
        play.check()
    observed(
        "a site's link down for 20 s in a round",
        "its SuperNode keeps trying",
        f"{counts:.0f} s from the link until it counts again",
    )


@faults
@needs_root
def test_the_servers_disk_is_full(arena: Arena, observed: Observed) -> None:
    play = arena.begin()
    play.wait(1)
    with full(arena.federation.runs):
        ended = play.ended()
        assert not ended.completed
        assert "No space left on device" in ended.details
        assert "make room" in ended.details
        committed = len(play.look())
    begun = time.monotonic()
    play.resume()
    play.wait(committed + 1)
    step = time.monotonic() - begun
    play.check(whole=True)
    observed(
        "the disk of the run folder full",
        "the run fails with the path and the reason; after `fedstill resume` the same numbers",
        f"{step:.0f} s from resume to the next commit",
    )


@faults
@needs_root
def test_a_sites_disk_is_full(arena: Arena, observed: Observed) -> None:
    play = arena.begin(**{"rounds.count": 6})
    play.wait(1)
    with full(arena.federation.site("north").path / "store"):
        until(lambda: any("north" not in step["accepted"] for step in play.look()), 120, "a round without north")
        missed = next(step for step in play.look() if "north" not in step["accepted"])
        since = len(play.look())
    begun = time.monotonic()
    assert _why(missed, "north") == "client-storage"
    counts = play.counted_again("north", since, begun)
    play.check()
    observed(
        "the disk of a site's store full",
        "its answer is a refusal at once (client-storage); the round goes on without it",
        f"{counts:.0f} s from room on the disk until it counts again",
    )


CLOCK = """
import datetime, time
import flwr.supercore.date
def off():
    return float(open({path!r}).read())
time.time = lambda real=time.time: real() + off()
flwr.supercore.date.now = lambda real=flwr.supercore.date.now: real() + datetime.timedelta(seconds=off())
"""
"""Not libfaketime: below it Python 3.11's sleep fails with EINVAL."""


@faults
@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_is_an_hour_off(arena: Arena, observed: Observed, tmp_path: Path, hours: int) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    environment = at_start(tmp_path / "clock-code", CLOCK.format(path=str(clock)))
    log = arena.federation.processes / "node-south.log"
    with changed_node(arena.federation, "south", environment=environment):
        online(arena.federation, "south")
        play = arena.begin(**{"rounds.count": 24})
        play.wait(1)
        size = len(log.read_text(errors="replace"))
        clock.write_text(str(3600 * hours))
        told = "ahead of" if hours > 0 else "behind"
        begun = time.monotonic()
        until(lambda: f"s {told} that of" in log.read_text(errors="replace")[size:], 120, "the log names the clock")
        named = time.monotonic() - begun
        until(lambda: any("south" not in step["accepted"] for step in play.look()), 120, "a round without south")
        clock.write_text("0")
        ended, since = time.monotonic(), len(play.look())
        counts = play.counted_again("south", since, ended)
        play.check()
    observed(
        f"a site's clock {abs(hours)} h {told.split(maxsplit=1)[0]}",
        f"Flower refuses the node, `fedstill node` names the clock after {named:.0f} s and ends; rounds go on",
        f"{counts:.0f} s from the right time until it counts again",
    )


@faults
def test_a_node_speaks_another_protocol(arena: Arena, observed: Observed, tmp_path: Path) -> None:
    play = arena.begin(**{"rounds.count": 10})
    play.wait(1)
    code = "import fedstill.common\nfedstill.common.PROTOCOL -= 1\n"
    with changed_node(arena.federation, "south", environment=at_start(tmp_path / "old", code)):
        until(lambda: any("south" not in step["accepted"] for step in play.look()), 120, "a round without south")
        missed = next(step for step in play.look() if "south" not in step["accepted"])
        assert _why(missed, "south") in {"other-protocol", "no-answer", "client-error"}
        until(
            lambda: any(_said(step, "south") == "other-protocol" for step in play.look()) or len(play.look()) > 4,
            120,
            "it says why",
        )
        assert "other-protocol" in {_said(step, "south") for step in play.look()}
    ended, since = time.monotonic(), len(play.look())
    counts = play.counted_again("south", since, ended)
    play.check()
    observed(
        "a node with an older protocol in a run",
        "its answer is a refusal at once (other-protocol); the round goes on without it",
        f"{counts:.0f} s from the right version until it counts again",
    )


def _said(step: dict[str, object], site: str) -> str:
    rejected = step["rejected"]
    assert isinstance(rejected, list)
    return str({one["client"]: one["reason"] for one in rejected}.get(site, ""))


@faults
def test_a_node_has_another_version(arena: Arena, observed: Observed, tmp_path: Path) -> None:
    code = "import fedstill.common\nfedstill.common.__version__ = '0.0.9'\n"
    with changed_node(arena.federation, "south", environment=at_start(tmp_path / "old", code)):
        online(arena.federation, "south")
        play = arena.begin(**{"rounds.count": 1})
        play.check()
    assert all(step["cohort"] == ["east", "north"] for step in play.look())
    said = refused(arena.federation, play.submitted.folder)
    assert list(said) == ["south"]
    assert said["south"].startswith("other-version: ")
    assert "0.0.9" in said["south"]
    assert "does not take part: other-version" in server_log(arena.federation, play.submitted.id)
    observed("a node with another fedstill", "it is not asked; `fedstill run` says other-version", "its next run")


@pytest.mark.parametrize("fault", ["other authority", "missing", "other site's key"])
def test_a_certificate_is_wrong(arena: Arena, observed: Observed, tmp_path: Path, fault: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    theirs = arena.federation.site("south").path
    for name in ("ca.crt", "site.crt", "site.key", "node.key", "node.toml"):
        (site / name).write_bytes((theirs / name).read_bytes())
    (site / "node.toml").write_text((theirs / "node.toml").read_text().partition("site =")[0])
    if fault == "other authority":
        other = identities.new_authority(tmp_path / "ca", "other")
        role = identities.SITE
        identities.new_certificate(other, site / "site.crt", site / "site.key", name="south", role=role)
    elif fault == "missing":
        (site / "site.crt").unlink()
    else:
        (site / "node.key").write_bytes((arena.federation.site("north").path / "node.key").read_bytes())
    expected = {
        "other authority": "closes the connection: it is none of that federation's",
        "missing": "site.crt is not there",
        "other site's key": "does not let them in",
    }[fault]
    reached = arena.federation.processes / "superlink.log"
    size = len(reached.read_text(errors="replace"))
    begun = time.monotonic()
    node = node_command(site / "node.toml", tmp_path / "home", tmp_path / "log")
    node.wait(timeout=120)
    said = (tmp_path / "log").read_text(errors="replace")
    assert node.returncode == 2, said
    assert expected in " ".join(said.split())
    assert "activate" not in reached.read_text(errors="replace")[size:].lower()
    observed(
        f"`fedstill node` with a certificate that is wrong: {fault}",
        f"exit code 2: {expected}; nothing is sent",
        f"ends after {time.monotonic() - begun:.0f} s",
    )


@faults
def test_two_processes_have_one_key(arena: Arena, observed: Observed, tmp_path: Path) -> None:
    play = arena.begin()
    play.wait(1)
    # The same folder, as somebody would who starts the node a second time.
    begun = time.monotonic()
    second = node_command(arena.federation.site("south").path / "node.toml", tmp_path / "home", tmp_path / "log")
    try:
        second.wait(timeout=240)
    finally:
        second.kill()
        second.wait()
    took = time.monotonic() - begun
    said = (tmp_path / "log").read_text(errors="replace")
    assert second.returncode == 1, said
    assert "Failed to activate SuperNode" in said
    play.check(whole=True)
    observed(
        "a second process with a node's key",
        "it ends with exit code 1 (Flower's code 305, Failed to activate SuperNode); the first goes on, all count once",
        f"ends after {took:.0f} s",
    )


@faults
def test_the_supervisor_is_killed(arena: Arena, observed: Observed) -> None:
    play = arena.begin()
    play.wait(1)
    federation = arena.federation
    names = ("superlink", "superexec", "proxy", *(f"node-{site}" for site in SITES))
    ran = {name: process(federation, name) for name in names}
    supervisor = read_state(federation.processes).supervisor
    assert supervisor is not None
    kill(supervisor)
    until(lambda: not supervisor.alive(), 10, "it is dead")
    begun = time.monotonic()
    running.up(federation, sites=SITES, data_dir=None, within=120)
    took = time.monotonic() - begun
    assert {name: process(federation, name) for name in names} == ran
    before = process(federation, "node-south")
    kill(before)
    again(federation, "node-south", before)
    play.check()
    observed(
        "the supervisor of `fedstill deploy up` killed",
        "its processes go on; `up` again takes them over and restarts what dies; `down` ends them",
        f"{took:.0f} s for `up`",
    )
