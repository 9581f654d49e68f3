"""A federation with real processes: SuperLink, SuperExec, nginx, SuperNodes over mutual TLS with node keys."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
    until,
)

from fedstill.common.errors import ConfigError
from fedstill.common.scenario import parse
from fedstill.common.sources import override, read_table
from fedstill.server.deploy import control, running, writing
from fedstill.server.deploy.layout import Federation, open_federation
from fedstill.server.deploy.submitting import submit
from fedstill.server.deploy.supervisor import Wanted, read_state, read_wanted, write_wanted

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


def test_an_app_with_code_is_refused_by_every_site(federation: Federation, tmp_path: Path) -> None:
    app, marker = federation.server / "app", tmp_path / "played"
    config = (app / "pyproject.toml").read_text()
    code = f"open({str(marker)!r}, 'w').close()\nfrom fedstill.client import app as ours\napp = ours.app\n"
    (app / "evil.py").write_text(code)
    (app / "pyproject.toml").write_text(config.replace("fedstill.client.app:app", "evil:app"))
    try:
        words = changes(**{"rounds.deadline": 15.0, "rounds.attempts": 1})
        done = fedstill(
            "run", "digits", "--federation", federation.path, "--public", parties(federation) / "public", *words
        )
    finally:
        (app / "evil.py").unlink()
        (app / "pyproject.toml").write_text(config)
    assert done.returncode == 4, done.stdout + done.stderr
    for site in SITES:
        log = (federation.processes / f"node-{site}.log").read_text(errors="replace")
        assert "an app with evil.py: expected no code" in log
    assert not marker.exists()


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

    def test_strangers_that_never_end_their_requests_shut_nobody_out(self, federation: Federation) -> None:
        count = 1200  # more than nginx takes unless it is told to
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2 * count:
            pytest.skip(f"{hard} open files are too few for {count} connections")
        context = ssl.create_default_context(cafile=str(federation.authority))
        with contextlib.ExitStack() as strangers:
            strangers.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count), hard))
            for _ in range(count):
                plain = socket.create_connection(("localhost", federation.port), timeout=20)
                stranger = strangers.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                stranger.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: ")
            with client(federation, federation.server / "operator.crt") as operator:
                assert operator.get("/health").status_code == 200
            assert stranger.recv(1) == b""  # the door has waited for long enough

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

    def test_the_log_names_who_asked(self, federation: Federation) -> None:
        with client(federation, federation.site("north").certificate) as site:
            assert site.get("/of-nobody").status_code == 403

        def asked() -> list[str]:
            lines = (federation.processes / "nginx-access.log").read_text().splitlines()
            return [line.split('"')[1] for line in lines if '"GET /of-nobody HTTP/1.1" 403 ' in line]

        # nginx writes the line when it has answered, which may be after the answer was read.
        assert [name.split(",")[0] for name in until(asked, 20, "the line in the log")] == ["CN=north"]

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
    assert running.register(grown) == running.Admission(let_in=("east",), shut_out=())
    headers = _header(grown, "east")

    def status() -> int:
        with client(grown, grown.site("east").certificate) as site:
            return int(site.post("/v1/fleet/pull-messages", headers=headers).status_code)

    until(lambda: status() != 403, 10, "a new site comes in")
    writing.renew(grown, "east")
    assert running.register(grown) == running.Admission(let_in=("east",), shut_out=())
    old, headers = headers, _header(grown, "east")
    assert old != headers
    until(lambda: status() != 403, 10, "a site with new keys comes in")
    rest = writing.remove(grown, "east")
    assert running.register(rest) == running.Admission(let_in=(), shut_out=("east",))
    until(lambda: status() == 403, 10, "a revoked site is shut out")
    assert {one.name: one.status for one in running.status(rest).nodes}.get("east", "unregistered") == "unregistered"


@pytest.fixture
def superexec(federation: Federation) -> Iterator[None]:
    """The SuperExec as its systemd unit starts it."""
    before = read_wanted(federation.processes)
    unit = (federation.server / "systemd" / "fedstill-superexec.service").read_text()
    unit = unit.replace(writing.INSTALLED, str(Path(sys.executable).parent))
    unit = unit.replace(f"/srv/fedstill/{federation.name}", str(federation.path))
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    environment = dict(word.split("=", 1) for word in settings["Environment"].split())
    own = Wanted(
        "superexec",
        tuple(settings["ExecStart"].split()),
        {**environment, "PATH": "/usr/bin:/bin"},
        settings["WorkingDirectory"],
    )
    _swap(federation, [own if one.name == "superexec" else one for one in before])
    yield
    _swap(federation, before)


def _swap(federation: Federation, wanted: Sequence[Wanted]) -> None:
    old = process(federation, "superexec")
    write_wanted(federation.processes, wanted)
    supervisor = read_state(federation.processes).supervisor
    assert supervisor is not None
    supervisor.signal(signal.SIGHUP)
    until(lambda: process(federation, "superexec") != old, 60, "another SuperExec")


@pytest.mark.usefixtures("superexec")
def test_sigterm_ends_a_run_at_the_border_of_a_round_and_resume_goes_on(federation: Federation, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    submitted = submit(federation, SCENARIO, public=parties(federation) / "public", metrics=address)
    until(lambda: records(submitted.folder.path), 120, "the first step is committed")
    health = httpx.get(f"http://{address}/health", timeout=20).json()
    page = httpx.get(f"http://{address}/metrics", timeout=20).text
    step = next(line for line in page.splitlines() if line.startswith("fedstill_step{"))
    assert 0 <= health["step"] <= float(step.rsplit(" ", 1)[1]) < health["steps"] == 3
    # What systemd and container engines do.
    process(federation, "superexec").signal(signal.SIGTERM)
    until(lambda: running.status(federation).runs[0].finished, 120, "the run ends")
    ended = running.status(federation).runs[0]
    assert "stopped after step" in ended.details
    committed = records(submitted.folder.path)
    assert 1 <= len(committed) < 4
    done = fedstill("resume", submitted.folder.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert simulate(federation, tmp_path / "local").returncode == 0
    assert records(submitted.folder.path) == records(tmp_path / "local")


def _header(federation: Federation, site: str) -> dict[str, str]:
    from fedstill.server.deploy.identities import header_of

    return {"flwr-public-key": header_of(federation.site(site).path / "node.pub")}


def test_down_ends_exactly_those_processes_wherever_the_folder_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_federation(tmp_path / "made", ("solo",))
    one = open_federation((tmp_path / "made").rename(tmp_path / "fed"))
    # Flower's command takes a folder of the connection's name for an app.
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pyproject.toml").write_text("no app")
    monkeypatch.chdir(tmp_path)
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


def test_up_waits_for_nobody_who_ends_again_and_again(tmp_path: Path) -> None:
    one = new_federation(tmp_path / "fed", ("solo",))
    file = one.site("solo").path / "client.toml"
    file.write_text("")  # node.toml does not name it
    try:
        with pytest.raises(ConfigError, match=r"node-solo has ended 3 times.*does not name the client\.toml beside it"):
            running.up(one, sites=("solo",), data_dir=None, within=120)
        file.unlink()
        running.up(one, sites=("solo",), data_dir=None, within=120)
        (node,) = control.nodes(one)
        assert (node.name, node.status) == ("solo", "online")
        assert sorted(running.down(one)) == ["node-solo", "proxy", "superexec", "superlink"]
        # It has said that it goes, so the next one is let in at once, which takes a minute else.
        begun = time.monotonic()
        with socket.create_server(("0.0.0.0", one.port)):
            with pytest.raises(ConfigError, match=r"proxy has ended 3 times.*bind\(\)"):
                running.up(one, sites=("solo",), data_dir=None, within=120)
            assert [node.status for node in control.nodes(one)] == ["offline"]
        running.up(one, sites=("solo",), data_dir=None, within=120)
        assert time.monotonic() - begun < 60
        (again,) = control.nodes(one)
        assert (again.id, again.status) == (node.id, "online")
    finally:
        running.down(one)


def test_down_copes_with_a_killed_supervisor(tmp_path: Path) -> None:
    one = new_federation(tmp_path / "fed", ("solo",))
    try:
        running.up(one, sites=(), data_dir=None, within=120)
        ran = [process(one, name) for name in ("superlink", "superexec", "proxy")]
        supervisor = read_state(one.processes).supervisor
        assert supervisor is not None
        supervisor.signal(signal.SIGKILL)
        assert all(identity.alive() for identity in ran)
        assert sorted(running.down(one)) == ["proxy", "superexec", "superlink"]
        assert not any(identity.alive() for identity in ran)
        assert not running.answers(one)
    finally:
        running.down(one)
