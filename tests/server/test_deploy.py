"""What `fedstill deploy init` writes: keys, certificates, configuration; nothing of it needs a network."""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedstill.common.environment import PROCESSES
from fedstill.common.errors import ConfigError, RunFolderError
from fedstill.server.deploy import identities, writing
from fedstill.server.deploy.layout import Federation, federation_of, open_federation

PLAIN = Federation(Path("fed"), "heart", "fl.example.org", 8443, 8000, ("north", "south"))


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    one = replace(PLAIN, path=tmp_path / "fed")
    writing.init(one)
    return one


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


class TestLayout:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "Heart"}, "name 'Heart'"),
            ({"sites": ("north", "a/b")}, "name 'a/b'"),
            ({"sites": ("north", "-a")}, "name '-a'"),
            ({"sites": ("x" * 41,)}, "expected 1 to 40"),
            ({"sites": ()}, "at least one"),
            ({"sites": ("a", "a")}, "each once"),
            ({"port": 0}, "port 0"),
            ({"port": 65536}, "port 65536"),
            ({"port": 8000}, "another one for the SuperLink"),
            ({"host": "a b"}, "host 'a b'"),
            ({"host": "a;b"}, "host 'a;b'"),
            ({"host": ""}, "host ''"),
        ],
    )
    def test_what_is_refused(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            replace(PLAIN, **changes)  # type: ignore[arg-type]

    def test_it_is_read_as_it_was_written(self, federation: Federation) -> None:
        assert open_federation(federation.path) == federation

    @pytest.mark.parametrize("text", [None, "no toml", 'name = "heart"\n', 'nmae = "heart"\n'])
    def test_folders_that_hold_none(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "federation.toml").write_text(text)
        with pytest.raises(RunFolderError, match="make one with 'fedstill deploy init'"):
            open_federation(tmp_path)

    def test_a_run_folder_says_whose_it_is(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        assert federation_of(federation.runs / "one") == federation
        monkeypatch.chdir(federation.server)
        assert federation_of(Path("runs/one")) == federation
        for other in (federation.path / "one", federation.server / "one", Path("one"), Path("/one"), Path("/")):
            with pytest.raises(ConfigError, match="or --federation DIR"):
                federation_of(other)

    def test_a_folder_with_something_in_it_stays_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("mine")
        with pytest.raises(RunFolderError, match="is not empty"):
            writing.init(replace(PLAIN, path=tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class TestIdentities:
    def test_every_certificate_is_the_authoritys_for_its_purpose(self, federation: Federation) -> None:
        authority = certificate(federation.authority)
        wanted = {
            federation.server / "server.crt": ("fl.example.org", "server", ExtendedKeyUsageOID.SERVER_AUTH),
            federation.server / "operator.crt": ("operator", "operator", ExtendedKeyUsageOID.CLIENT_AUTH),
            federation.site("north").certificate: ("north", "site", ExtendedKeyUsageOID.CLIENT_AUTH),
            federation.site("south").certificate: ("south", "site", ExtendedKeyUsageOID.CLIENT_AUTH),
        }
        for path, (name, role, purpose) in wanted.items():
            one = certificate(path)
            one.verify_directly_issued_by(authority)
            assert one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == name
            assert one.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value == role
            assert list(one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
            assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            key = serialization.load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
            assert key.public_key() == one.public_key()
        assert len({certificate(path).serial_number for path in wanted}) == len(wanted)

    def test_the_server_is_known_by_its_name_and_on_its_own_machine(self, federation: Federation) -> None:
        names = certificate(federation.server / "server.crt").extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        assert names.value.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
        assert [str(one) for one in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]

    def test_days_until_a_certificate_ends(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        path = federation.server / "server.crt"
        assert identities.days_left(path) == identities.CERTIFICATE_DAYS - 1
        monkeypatch.setattr(identities, "CERTIFICATE_DAYS", 0)
        writing.renew(federation)
        assert identities.days_left(path) == -1

    def test_private_keys_are_their_owners_alone(self, federation: Federation) -> None:
        keys = sorted(path.name for path in federation.path.rglob("*.key"))
        assert keys == ["ca.key", "node.key", "node.key", "operator.key", "server.key", "site.key", "site.key"]
        for path in federation.path.rglob("*.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    def test_a_node_key_is_of_the_kind_that_flower_takes(self, federation: Federation) -> None:
        private = serialization.load_ssh_private_key(federation.site("north").node_key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        public = serialization.load_ssh_public_key((federation.site("north").path / "node.pub").read_bytes())
        assert private.public_key() == public

    def test_nobodys_key_lies_where_another_takes_it_along(self, federation: Federation) -> None:
        authority = (federation.path / "ca" / "ca.key").read_bytes()
        for folder in (federation.server, federation.path / "sites"):
            assert not any(path.read_bytes() == authority for path in folder.rglob("*") if path.is_file())


class TestConfiguration:
    def test_the_door_knows_every_site_by_certificate_and_key(self, federation: Federation) -> None:
        text = (federation.server / "sites.conf").read_text()
        for name in federation.sites:
            header = identities.header_of(federation.site(name).path / "node.pub")
            # nginx writes a subject in this form.
            subject = certificate(federation.site(name).certificate).subject.rfc4514_string()
            assert f'"{subject}:{header}" 1;' in text
        assert text.count(" 1;") == 2

    def test_sites_come_and_go(self, federation: Federation) -> None:
        before = (federation.site("north").path / "node.pub").read_bytes()
        grown = writing.add(federation, "east")
        assert grown.sites == ("north", "south", "east")
        assert open_federation(grown.path) == grown
        assert "CN=east" in (grown.server / "sites.conf").read_text()
        assert "node-east" in yaml.safe_load((grown.path / "compose.yaml").read_text())["services"]
        assert tomllib.loads(grown.site("east").config.read_text())["config"] == {
            "partition-id": 2,
            "num-partitions": 3,
        }
        with pytest.raises(ConfigError, match="site 'east': is there already"):
            writing.add(grown, "east")
        shrunk = writing.remove(grown, "south")
        assert shrunk.sites == ("north", "east")
        assert "CN=south" not in (grown.server / "sites.conf").read_text()
        assert "node-south" not in yaml.safe_load((grown.path / "compose.yaml").read_text())["services"]
        assert grown.site("south").certificate.is_file()
        with pytest.raises(ConfigError, match="site 'south': expected one of north, east"):
            writing.remove(shrunk, "south")
        assert (federation.site("north").path / "node.pub").read_bytes() == before

    def test_new_keys_of_a_site(self, federation: Federation) -> None:
        north, south = federation.site("north"), federation.site("south")
        before = {path: path.read_bytes() for path in federation.path.rglob("*") if path.is_file()}
        writing.renew(federation, "north")
        changed = {path for path, content in before.items() if path.read_bytes() != content}
        assert changed == {
            *(north.path / name for name in ("site.crt", "site.key", "node.key", "node.pub")),
            federation.node_key("north"),
            federation.server / "sites.conf",
        }
        assert identities.header_of(federation.node_key("north")) in (federation.server / "sites.conf").read_text()
        certificate(north.certificate).verify_directly_issued_by(certificate(federation.authority))
        assert south.certificate.read_bytes() == before[south.certificate]
        with pytest.raises(ConfigError, match="site 'east': expected one of north, south"):
            writing.renew(federation, "east")

    def test_new_certificates_of_the_server(self, federation: Federation) -> None:
        before = {path: path.read_bytes() for path in federation.path.rglob("*") if path.is_file()}
        writing.renew(federation)
        changed = {path.name for path, content in before.items() if path.read_bytes() != content}
        assert changed == {"server.crt", "server.key", "operator.crt", "operator.key"}
        certificate(federation.server / "server.crt").verify_directly_issued_by(certificate(federation.authority))

    def test_the_server_needs_nothing_of_the_sites_folders(self, federation: Federation, tmp_path: Path) -> None:
        there = tmp_path / "server"
        shutil.copytree(federation.server, there / "server")
        shutil.copy(federation.path / "federation.toml", there)
        moved = open_federation(there)
        (moved.server / "sites.conf").unlink()
        assert set(writing.upgrade(moved)) == {
            moved.path / name for name in ("README.md", "compose.yaml", "server/sites.conf")
        }
        assert (moved.server / "sites.conf").read_text() == (federation.server / "sites.conf").read_text()

    def test_an_upgrade_writes_what_is_another(self, federation: Federation) -> None:
        north = federation.site("north")
        changed = [federation.server / "nginx.conf", federation.path / "compose.yaml", north.path / "node.service"]
        missing = federation.server / "systemd" / "fedstill-superlink.service"
        before = {path: path.read_bytes() for path in federation.path.rglob("*") if path.is_file()}
        for path in changed:
            path.write_text("of an older version")
        missing.unlink()
        (federation.site("south").config).write_text('name = "south"  # and more, by hand')

        assert set(writing.upgrade(federation)) == {*changed, missing}

        after = {path: path.read_bytes() for path in federation.path.rglob("*") if path.is_file()}
        old = {path.with_name(f"{path.name}.old") for path in changed}
        assert {path for path in after if path not in before} == old
        assert {path for path in before if after[path] != before[path]} == {federation.site("south").config}
        assert {path.read_text() for path in old} == {"of an older version"}
        assert writing.upgrade(federation) == []

    def test_the_last_site_stays(self, federation: Federation) -> None:
        with pytest.raises(ConfigError, match="at least one"):
            writing.remove(writing.remove(federation, "north"), "south")

    @pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not installed")
    def test_nginx_takes_its_configuration(self, federation: Federation) -> None:
        done = subprocess.run(
            [
                *(str(shutil.which("nginx", path="/usr/sbin:/usr/bin")), "-t", "-p", f"{federation.path}/"),
                *("-c", "server/nginx.conf", "-e", "run/nginx-error.log"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "syntax is ok" in done.stderr

    def test_containers_are_those_that_processes_would_be(self, federation: Federation) -> None:
        table = yaml.safe_load((federation.path / "compose.yaml").read_text())
        services = table["services"]
        assert sorted(services) == ["loopback", "node-north", "node-south", "proxy", "superexec", "superlink"]
        arguments = {
            "superlink": writing.superlink_arguments(federation),
            "superexec": writing.superexec_arguments(federation),
        }
        for name, own in arguments.items():
            assert services[name]["command"] == ["python", "-m", f"fedstill.server.deploy.{name}", *own]
        assert services["loopback"]["ports"] == ["8443:8443"]
        # Nodes reach the door by the name in their node.toml; the SuperLink's own port is none of theirs.
        assert services["loopback"]["networks"]["default"]["aliases"] == [federation.host]
        for name in ("superlink", "superexec", "node-north"):
            assert services[name]["environment"].items() >= PROCESSES.items()
        for name in ("superlink", "proxy", "superexec"):
            assert services[name]["network_mode"] == "service:loopback"
            assert services[name]["user"] == "${FEDSTILL_USER:-1000:1000}"
        for name, service in services.items():
            for volume in service.get("volumes", ()):
                source = volume.split(":")[0]
                if source.startswith("./"):
                    assert (federation.path / source).exists(), (name, volume)
                elif not source.startswith("$"):
                    assert source in table["volumes"], (name, volume)
        assert "/site:ro" in services["node-north"]["volumes"][0]

    def test_a_rehearsal_of_containers_reaches_localhost(self, tmp_path: Path) -> None:
        one = replace(PLAIN, path=tmp_path / "fed", host="localhost")
        writing.init(one)
        services = yaml.safe_load((one.path / "compose.yaml").read_text())["services"]
        assert services["node-north"]["network_mode"] == "service:loopback"

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
    def test_systemd_takes_its_units(self, federation: Federation, tmp_path: Path) -> None:
        units = tmp_path / "units"
        units.mkdir()
        found = [*(federation.server / "systemd").glob("*.service"), federation.site("north").path / "node.service"]
        assert len(found) == 4
        programs = str(Path(sys.executable).parent)
        for path in found:
            # The programs are looked for, so they have to be where the unit says.
            text = path.read_text().replace(writing.INSTALLED, programs)
            (units / f"fedstill-{path.stem.removeprefix('fedstill-')}.service").write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *map(str, sorted(units.iterdir()))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_client_on_a_device_is_shut_in(self, federation: Federation) -> None:
        unit = (federation.site("north").path / "node.service").read_text()
        for line in ("DynamicUser=yes", "ProtectSystem=strict", "MemoryMax=1G", "Restart=on-failure"):
            assert line in unit.splitlines()
        loaded = {line.split("=")[1].split(":")[0] for line in unit.splitlines() if line.startswith("LoadCredential=")}
        assert loaded == set(writing.SITE_FILES)
        assert all((federation.site("north").path / name).is_file() for name in loaded)
        words = shlex.split(
            next(line for line in unit.splitlines() if line.startswith("Environment=")).split("=", 1)[1]
        )
        assert dict(word.split("=", 1) for word in words).items() >= PROCESSES.items()
