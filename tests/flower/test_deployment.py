"""A federation with real processes: SuperLink, SuperExec, nginx, SuperNodes over mutual TLS with node keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from deployed import (
    NGINX,
    client,
    fedstill,
    new_federation,
    own_data,
    process,
    records,
    server_paths,
    started_by,
    until,
)

from fedstill.common.scenario import parse
from fedstill.common.sources import override, read_table
from fedstill.server.deploy import running, writing
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.submitting import submit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NGINX, reason="nginx is not installed")]

SITES = ("north", "south")
SHORT = {
    "clients.count": 2,
    "rounds.count": 2,
    "training.epochs": 1,
    "teacher.kind": "consensus",
    "tasks.digits.models": ["mlp-small", "linear-softmax"],
}

SCENARIO = parse(override(read_table("digits"), SHORT))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One federation for all tests here, up; logs are printed when something fails."""
    folder = tmp_path_factory.mktemp("federation")
    one = new_federation(folder / "fed", SITES)
    done = fedstill("split", "digits", folder / "parties", "--sites", ",".join(SITES), *changes())
    assert done.returncode == 0, done.stderr
    for site in SITES:
        own_data(one.site(site), folder / "parties" / "sites" / site, folder / "parties" / "public")
    try:
        running.up(one, sites=SITES, data_dir=None, within=120)
        yield one
    finally:
        for log in sorted(one.processes.glob("*.log")):
            print(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        running.down(one)


def parties(federation: Federation) -> Path:
    """What `fedstill split` has written: the public pack and every site's own files."""
    return federation.path.parent / "parties"


def changes(**others: object) -> list[str]:
    return [word for key, value in {**SHORT, **others}.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def simulate(federation: Federation, folder: Path) -> subprocess.CompletedProcess[str]:
    return fedstill("simulate", "digits", "--sites", parties(federation), *changes(), "--run-dir", folder)


def test_a_run_over_the_network_gives_the_numbers_of_a_simulated_one(federation: Federation, tmp_path: Path) -> None:
    public = parties(federation) / "public"
    done = fedstill("run", "digits", "--federation", federation.path, "--public", public, *changes(), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "finished:completed"
    simulated = simulate(federation, tmp_path / "local")
    assert simulated.returncode == 0, simulated.stderr
    ours = records(Path(told["folder"]))
    assert len(ours) == 4
    assert ours == records(tmp_path / "local")


def test_a_run_that_fails_is_an_exit_code(federation: Federation) -> None:
    words = changes(**{"clients.count": 3, "clients.quorum": 1.0, "rounds.deadline": 15.0, "rounds.attempts": 1})
    done = fedstill(
        "run", "digits", "--federation", federation.path, "--public", parties(federation) / "public", *words
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "finished:failed" in done.stderr
    assert "of 2 clients can take part: expected at least 3" in done.stderr


class TestDoor:
    """What the reverse proxy lets whom reach."""

    def test_without_a_certificate_nothing_answers(self, federation: Federation) -> None:
        with client(federation, None) as stranger:
            for path, methods in server_paths(federation).items():
                for method in methods:
                    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                        stranger.request(method, path)

    def test_a_certificate_of_another_authority_opens_nothing(self, federation: Federation, tmp_path: Path) -> None:
        from fedstill.server.deploy import identities

        other = identities.new_authority(tmp_path, "other")
        identities.new_certificate(other, tmp_path / "x.crt", tmp_path / "x.key", name="north", role=identities.SITE)
        with client(federation, tmp_path / "x.crt") as stranger, pytest.raises(httpx.TransportError):
            stranger.post("/v1/fleet/pull-messages", headers=_header(federation, "north"))

    def test_a_site_reaches_the_fleet_paths_only(self, federation: Federation) -> None:
        reached = set()
        with client(federation, federation.site("north").certificate) as site:
            for path, methods in server_paths(federation).items():
                for method in methods:
                    reply = site.request(method, path, headers=_header(federation, "north"))
                    if reply.status_code != 403:
                        reached.add(path)
                        # The SuperLink itself answered: it knows the path, and misses the node's signature.
                        assert reply.status_code in {400, 401, 415, 422}, (path, reply.status_code)
        assert reached == {path for path in server_paths(federation) if path.startswith("/v1/fleet/")}
        assert len(reached) >= 10

    def test_a_certificate_is_worth_nothing_with_another_sites_key(self, federation: Federation) -> None:
        with client(federation, federation.site("north").certificate) as site:
            for headers in ({}, _header(federation, "south")):
                for path in server_paths(federation):
                    assert site.post(path, headers=headers).status_code == 403

    def test_the_operator_reaches_control_and_health_only(self, federation: Federation) -> None:
        with client(federation, federation.server / "operator.crt") as operator:
            reached = {path for path in server_paths(federation) if operator.post(path).status_code != 403}
            assert operator.get("/health").status_code == 200
        assert {path for path in reached if path != "/health"} == {
            path for path in server_paths(federation) if path.startswith("/v1/control/")
        }

    def test_too_much_at_once_is_refused(self, federation: Federation) -> None:
        with client(federation, federation.site("north").certificate) as site:
            headers = _header(federation, "north")
            body = bytes((writing.BODY << 20) + 1)
            assert site.post("/v1/fleet/push-object", headers=headers, content=body).status_code == 413
            # Other requests are small, or announce more objects than anybody should.
            assert site.post("/v1/fleet/push-messages", headers=headers, content=bytes(2**20)).status_code == 413
            assert site.post("/v1/fleet/push-object", headers=headers, content=bytes(2**20)).status_code != 413
            for path in (
                "/v1/fleet/../control/list-runs",
                "/v1/fleet/%2e%2e/control/list-runs",
                "//v1/control/list-runs",
            ):
                assert site.post(path, headers=headers).status_code in {400, 403, 404}, path


def test_a_site_that_is_revoked_is_out_at_once(federation: Federation) -> None:
    grown = writing.add(federation, "east")
    running.reload_door(grown)
    running.register(grown)
    headers = _header(grown, "east")

    def status() -> int:
        with client(grown, grown.site("east").certificate) as site:
            return int(site.post("/v1/fleet/pull-messages", headers=headers).status_code)

    until(lambda: status() != 403, 10, "a new site comes in")
    rest = writing.remove(grown, "east")
    running.shut_out(rest, "east")
    until(lambda: status() == 403, 10, "a revoked site is shut out")
    assert {one.name: one.status for one in running.status(rest).nodes}.get("east", "unregistered") == "unregistered"


def test_sigterm_ends_a_run_at_the_border_of_a_round_and_resume_goes_on(federation: Federation, tmp_path: Path) -> None:
    submitted = submit(federation, SCENARIO, public=parties(federation) / "public")
    until(lambda: records(submitted.folder.path), 120, "the first step is committed")
    for app in started_by(federation, "superexec", "flwr-serverapp"):
        app.signal(signal.SIGTERM)
    until(lambda: running.status(federation).runs[0].finished, 120, "the run ends")
    ended = running.status(federation).runs[0]
    assert "stopped after step" in ended.details
    committed = records(submitted.folder.path)
    assert 1 <= len(committed) < 4
    done = fedstill("resume", submitted.folder.path, "--federation", federation.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert simulate(federation, tmp_path / "local").returncode == 0
    assert records(submitted.folder.path) == records(tmp_path / "local")


@pytest.mark.faults
def test_a_killed_process_comes_back_and_the_run_completes(federation: Federation, tmp_path: Path) -> None:
    submitted = submit(federation, SCENARIO, public=parties(federation) / "public")
    until(lambda: records(submitted.folder.path), 120, "the first step is committed")
    for name in ("proxy", "superlink", "node-north"):
        before = process(federation, name)
        os.kill(before.pid, signal.SIGKILL)
        until(partial(_again, federation, name, before.pid), 30, f"{name} comes back")
    until(lambda: len(records(submitted.folder.path)) == 4, 240, "the run completes")
    found = records(submitted.folder.path)
    for step in found:
        # Whoever counts, counts once.
        assert len(step["accepted"]) == len(set(step["accepted"]))
    until(lambda: running.status(federation).runs[0].completed, 60, "Flower knows it")


def _again(federation: Federation, name: str, before: int) -> bool:
    from fedstill.server.deploy.supervisor import read_state

    now = read_state(federation.processes).processes[name]
    return now is not None and now.pid != before and now.alive()


def _header(federation: Federation, site: str) -> dict[str, str]:
    from fedstill.server.deploy.identities import header_of

    return {"flwr-public-key": header_of(federation.site(site).path / "node.pub")}


def test_down_ends_exactly_those_processes(tmp_path: Path) -> None:
    one = new_federation(tmp_path / "fed", ("solo",))
    other = subprocess.Popen(["sleep", "60"])
    try:
        running.up(one, sites=(), data_dir=None, within=120)
        assert running.answers(one)
        ran = [process(one, name) for name in ("superlink", "superexec", "proxy")]
        assert sorted(running.down(one)) == ["proxy", "superexec", "superlink"]
        assert not any(identity.alive() for identity in ran)
        assert not running.answers(one)
        assert other.poll() is None
        assert running.down(one) == []
    finally:
        running.down(one)
        other.terminate()
        other.wait()
