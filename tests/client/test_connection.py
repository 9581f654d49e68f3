"""The site doctor's look at the way to the server: certificate, clock, key; and the command."""

from __future__ import annotations

import datetime
import json
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from fedstill.client.connection import Endpoint, connection, endpoint, knock
from fedstill.common.checkup import Check
from fedstill.common.errors import ConfigError
from fedstill.simulations import cli

if TYPE_CHECKING:
    from tests.client.conftest import Party

Make = Callable[..., "Party"]


def look(to: Endpoint) -> dict[str, Check]:
    checks = {check.what: check for check in connection(to)}
    for check in checks.values():
        assert (check.state == "right") or check.cure, check
        assert check.found
    return checks


class Authority:
    """Signs certificates, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.root = folder / "ca.crt"
        own = self._certificate(self.name, self.key.public_key(), days=90, authority=True)
        self.root.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def _certificate(
        self, name: x509.Name, key: Any, *, days: float, authority: bool = False, host: str = ""
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        end = now + datetime.timedelta(days=days)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - datetime.timedelta(days=1))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if authority:
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            made = made.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        if host:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def sign(self, host: str, *, days: float = 60) -> Path:
        """A PEM file of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._certificate(name, key.public_key(), days=days, host=host)
        path = self.folder / f"{host}-{days}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@contextmanager
def server(
    certificate: Path, *, asks_for: Path | None = None, ahead: float | None = 0.0, lets_in: str = ""
) -> Iterator[int]:
    """A server whose clock is ahead by so many seconds, or that says no time, and that lets in one key or all.

    Gives its port.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(403 if lets_in and self.headers["flwr-public-key"] != lets_in else 404)
            if ahead is not None:
                self.send_header("Date", self.date_time_string(int(time.time() + ahead)))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if asks_for is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(asks_for)
    with Quiet(("127.0.0.1", 0), Handler) as one:
        one.socket = context.wrap_socket(one.socket, server_side=True)
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield int(one.server_address[1])
        finally:
            one.shutdown()
            thread.join()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "node", ec.generate_private_key(ec.SECP384R1()))


def write_key(path: Path, made: Any, form: Any = serialization.PrivateFormat.OpenSSH, mode: int = 0o600) -> Path:
    path.write_bytes(made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    path.chmod(mode)
    return path


def test_a_connection_in_order(authority: Authority, key: Path) -> None:
    with server(authority.sign("localhost")) as port:
        found = look(Endpoint("localhost", port, authority.root, key))

    assert [check.state for check in found.values()] == ["right"] * 3
    assert found["node key"].found == f"{key}, secp384r1"
    assert found["server certificate"].found.startswith(f"localhost:{port}: TLSv1.3, good until 20")
    assert "(60 days)" in found["server certificate"].found or "(59 days)" in found["server certificate"].found
    assert found["clock"].found.endswith("the server's")


CERTIFICATES = {
    "short of time": (("localhost", 3), "note", "days)", "renew it in time"),
    "expired": (("localhost", -0.5), "wrong", "certificate has expired", "renew it; if it is not old"),
    "of another host": (("elsewhere.example", 60), "wrong", "Hostname mismatch", "have it made for 'localhost'"),
}


@pytest.mark.parametrize("what", CERTIFICATES)
def test_a_certificate(authority: Authority, key: Path, what: str) -> None:
    (host, days), state, message, cure = CERTIFICATES[what]
    with server(authority.sign(host, days=days)) as port:
        check = look(Endpoint("localhost", port, authority.root, key))["server certificate"]

    assert check.state == state
    assert message in check.found
    assert cure in check.cure


def test_a_certificate_of_somebody_else(authority: Authority, key: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with server(other.sign("localhost")) as port:
        check = look(Endpoint("localhost", port, authority.root, key))["server certificate"]

    assert check.state == "wrong"
    assert check.cure == f"{authority.root} did not sign it: ask the operator for the right file"


def test_a_server_that_asks_for_a_certificate(authority: Authority, key: Path) -> None:
    with server(authority.sign("localhost"), asks_for=authority.root) as port:
        without = look(Endpoint("localhost", port, authority.root, key))
        with_one = look(Endpoint("localhost", port, authority.root, key, authority.sign("site.example")))

    assert without["clock"].state == "note"
    assert "name it with --certificate" in without["clock"].cure
    assert with_one["clock"].state == "right"


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [
        (3600.0, "wrong", "s behind the server's"),
        (-3600.0, "wrong", "s ahead of the server's"),
        (20.0, "note", "s behind the server's"),
        (None, "note", "the server says no time"),
    ],
)
def test_clocks(authority: Authority, ahead: float | None, state: str, words: str) -> None:
    with server(authority.sign("localhost"), ahead=ahead) as port:
        check = look(Endpoint("localhost", port, authority.root))["clock"]

    assert (check.state, words in check.found) == (state, True)


def test_a_door_that_lets_a_node_in(authority: Authority, key: Path, tmp_path: Path) -> None:
    public = header_of(tmp_path / "node.pub", key)
    with server(authority.sign("localhost"), asks_for=authority.root, lets_in=public) as port:
        knock(Endpoint("localhost", port, authority.root, key, authority.sign("site.example")))


def header_of(path: Path, key: Path) -> str:
    """What the door compares, by the server's own code."""
    from fedstill.server.deploy import identities

    made = serialization.load_ssh_private_key(key.read_bytes(), password=None).public_key()
    path.write_bytes(made.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    return identities.header_of(path)


@pytest.mark.parametrize(
    ("ahead", "message"),
    [
        (3600.0, "this machine's clock: 3[0-9]{3} s behind that of localhost"),
        (-3600.0, "this machine's clock: 3[0-9]{3} s ahead of that of localhost"),
        (-8.0, "[78] s ahead of"),
        (200.0, ""),
        (-3.0, ""),
        (None, ""),
    ],
)
def test_a_door_and_a_clock(authority: Authority, key: Path, ahead: float | None, message: str) -> None:
    with server(authority.sign("localhost"), ahead=ahead) as port:
        to = Endpoint("localhost", port, authority.root, key)
        if message:
            with pytest.raises(ConfigError, match=message):
                knock(to)
        else:
            knock(to)


def test_a_door_that_stays_shut(authority: Authority, key: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with server(authority.sign("localhost"), asks_for=authority.root) as port:
        with pytest.raises(ConfigError, match="closes the connection: it is none of that federation's"):
            knock(Endpoint("localhost", port, authority.root, key, other.sign("site.example")))
        with pytest.raises(ConfigError, match=r"certificate verify failed|self.signed|unable to get"):
            knock(Endpoint("localhost", port, other.root, key, authority.sign("site.example")))
    with server(authority.sign("localhost"), lets_in="another") as port:
        with pytest.raises(ConfigError, match="they do not belong together, or the site was revoked"):
            knock(Endpoint("localhost", port, authority.root, key))
        with pytest.raises(ConfigError, match=r"node key .* cannot be used"):
            knock(Endpoint("localhost", port, authority.root, authority.root))
    with pytest.raises(OSError, match="refused"):
        knock(Endpoint("localhost", port, authority.root, key))


def test_nobody_there(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_address[1]
    found = look(Endpoint("localhost", port, authority.root))
    assert found["server"].state == "wrong"
    assert found["node key"].state == "note"
    assert look(Endpoint("localhost", port, tmp_path / "none"))["certificates"].state == "wrong"
    assert look(Endpoint("localhost", port))["server certificate"].state == "note"
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as plain:
        thread = threading.Thread(target=plain.handle_request)
        thread.start()
        monkeypatch.setattr("sys.stderr", open("/dev/null", "w"))  # noqa: SIM115  # the server's complaint
        check = look(Endpoint("localhost", plain.server_address[1], authority.root))["server certificate"]
        thread.join()
        sys.stderr.close()
        monkeypatch.undo()
    assert (check.state, "speaks no TLS" in check.found) == ("wrong", True)


PKCS8 = serialization.PrivateFormat.PKCS8
KEYS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another kind": (lambda path: write_key(path, ed25519.Ed25519PrivateKey.generate()), "expected NIST P-256"),
    "another curve": (lambda path: write_key(path, ec.generate_private_key(ec.SECP256R1()), PKCS8), "no OpenSSH key"),
    "for everybody": (
        lambda path: write_key(path, ec.generate_private_key(ec.SECP256R1()), mode=0o644),
        "others may use it (mode 644)",
    ),
    "none": (lambda path: path, "No such file"),
}


@pytest.mark.parametrize("what", KEYS)
def test_a_key_that_is_wrong(tmp_path: Path, what: str) -> None:
    make, message = KEYS[what]

    check = look(Endpoint("localhost", 1, None, make(tmp_path / "key")))["node key"]

    assert check.state == "wrong"
    assert message in check.found


@pytest.mark.parametrize("word", ["host", "host:", ":80", "host:many", "host:70000"])
def test_an_address_that_is_none(word: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        endpoint(word, root_certificates=None, key=None)
    assert endpoint("[::1]:80", root_certificates=None, key=None).host == "::1"


# The command ----------------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedstill", "doctor", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code if isinstance(left.value.code, int) else 0


def test_the_command(
    party: Make,
    authority: Authority,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    one = party()
    with server(authority.sign("localhost")) as port:
        where = ("--superlink", f"localhost:{port}", "--root-certificates", authority.root, "--key", key)
        assert command(monkeypatch, "--site", one.path, *where, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["healthy"] is True
    assert [check["what"] for check in told["checks"]][-3:] == ["node key", "server certificate", "clock"]
    one.change(policy={"proxy-digests": ["0" * 16]})

    assert command(monkeypatch, "--site", one.path) == 1
    shown = capfd.readouterr().out
    assert "wrong" in shown
    assert "pin it in policy.proxy-digests" in shown
    for words in (("--key", key), ("--site", one.path, "--key", key)):
        assert command(monkeypatch, *words) == 2
