"""A site's way to its federation: the server's certificate, its clock, the node's key."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from fedstill.common.checkup import Check
from fedstill.common.errors import ConfigError

PATIENCE = 10.0
"""Seconds for a connection."""

SHORT_OF_TIME = 21
"""Days that a certificate should have left."""

CLOSE, FAR = 5.0, 60.0
"""Seconds between two clocks: worth a note, and wrong. A message says until when it is good."""

AHEAD, BEHIND = 5.5, 304.5
"""Seconds by which a node's clock may differ: Flower takes no request that was signed 5 s from now, or 305 s ago. The
half second is what a Date says of nothing."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom a site connects.

    Attributes:
        host, port: of the server, or of the proxy before it.
        root_certificates: PEM file of who signs its certificate.
        key: the node's private key, OpenSSH format.
        certificate: PEM file of the site's own certificate and its key, for a proxy that asks for one; None for none.
        certificate_key: PEM file of its key, if it lies elsewhere.
    """

    host: str
    port: int
    root_certificates: Path | None = None
    key: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None


def endpoint(
    superlink: str, *, root_certificates: Path | None, key: Path | None, certificate: Path | None = None
) -> Endpoint:
    """An endpoint from its words.

    Raises:
        ConfigError: if it is not HOST:PORT.
    """
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--superlink {superlink}", "expected HOST:PORT", "such as federation.example.org:443")
    return Endpoint(host.strip("[]"), int(port), root_certificates, key, certificate)


def connection(to: Endpoint) -> Iterator[Check]:
    """Look at everything between a site and its federation."""
    if to.key is not None:
        yield _key(to.key)
    else:
        yield Check("node key", "note", "none named", "name it with --key")
    yield from _server(to)


def _key(path: Path) -> Check:
    try:
        content = path.read_bytes()
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Check("node key", "wrong", f"{path}: {error.strerror}", "ask the operator for it, or make one")
    make = f"ssh-keygen -t ecdsa -b 384 -N '' -f {path.name}, and have it registered"
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        return Check("node key", "wrong", f"{path}: no OpenSSH key without a password ({error})", make)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        found = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
        return Check("node key", "wrong", f"{path}: {found}, expected NIST P-256, P-384 or P-521", make)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Check("node key", "wrong", f"{path}: others may use it (mode {mode:03o})", f"chmod 600 {path}")
    return Check("node key", "right", f"{path}, {key.curve.name}")


def _server(to: Endpoint) -> Iterator[Check]:
    where = f"{to.host}:{to.port}"
    if to.root_certificates is None:
        yield Check("server certificate", "note", "not looked at", "name who signs it with --root-certificates")
        return
    try:
        context = _context(to)
    except (OSError, ssl.SSLError) as error:
        files = to.root_certificates if to.certificate is None else f"{to.root_certificates} or {to.certificate}"
        yield Check("certificates", "wrong", f"{files} cannot be used: {error}", "ask the operator for the files")
        return
    try:
        plain = socket.create_connection((to.host, to.port), timeout=PATIENCE)
    except OSError as error:
        yield Check("server", "wrong", f"{where} cannot be reached: {error}", "check address, network and firewall")
        return
    with plain:
        try:
            secure = context.wrap_socket(plain, server_hostname=to.host)
        except ssl.SSLCertVerificationError as error:
            yield Check("server certificate", "wrong", f"{where}: {error.verify_message}", _cure(error, to))
            return
        except (OSError, ssl.SSLError) as error:
            yield Check("server certificate", "wrong", f"{where} speaks no TLS: {error}", "check the port")
            return
        with secure:
            yield _expiry(where, secure)
            yield _clock(to, secure)


def knock(to: Endpoint) -> None:
    """Ask the federation's door once, as the node will, for Flower's SuperNode tries a door that stays shut for ever.

    Args:
        to: with certificates and the node's key.

    Raises:
        ConfigError: for what no second try mends: a certificate, the node's key, the clock.
        OSError: if the server does not answer; it may later.
    """
    where = f"{to.host}:{to.port}"
    header = {_KEY_HEADER: _public(to.key)} if to.key is not None else {}
    with socket.create_connection((to.host, to.port), timeout=PATIENCE) as plain:
        try:
            secure = _context(to).wrap_socket(plain, server_hostname=to.host)
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"server certificate of {where}", error.verify_message, _cure(error, to)) from None
        with secure, contextlib.closing(http.client.HTTPConnection(to.host, to.port, timeout=PATIENCE)) as client:
            client.sock = secure
            begun = time.time()
            try:
                client.request("GET", "/v1/fleet/pull-messages", headers={**header, "Connection": "close"})
                reply = client.getresponse()
            except (http.client.BadStatusLine, ConnectionResetError, ssl.SSLError):
                raise ConfigError(
                    f"certificate {to.certificate}",
                    f"{where} closes the connection: it is none of that federation's, or out of date",
                    "ask the operator for the site's files",
                ) from None
    if reply.status == http.client.FORBIDDEN:
        raise ConfigError(
            f"certificate {to.certificate} with node key {to.key}",
            f"{where} does not let them in: they do not belong together, or the site was revoked",
            "ask the operator for the site's files",
        )
    off = _off(begun, reply.getheader("Date"))
    if off is not None and not -BEHIND < off < AHEAD:
        found = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} that of {where}, which refuses the node for it"
        raise ConfigError("this machine's clock", found, "set it (NTP)")


_KEY_HEADER = "flwr-public-key"
"""In which Flower's node says who it is."""


def _public(path: Path) -> str:
    """What the node with that private key sends in the header.

    Raises:
        ConfigError: if it is none.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None).public_key()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"node key {path}", f"cannot be used: {error}", "ask the operator for it") from None
    return base64.b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).decode("ascii")


def _context(to: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(to.root_certificates) if to.root_certificates else None)
    if to.certificate is not None:
        context.load_cert_chain(str(to.certificate), str(to.certificate_key) if to.certificate_key else None)
    return context


_EXPIRED, _NOT_YET, _OTHER_NAME = 10, 9, 62
"""OpenSSL's codes (X509_V_ERR_…)."""


def _cure(error: ssl.SSLCertVerificationError, to: Endpoint) -> str:
    if error.verify_code == _EXPIRED:
        return "have the operator renew it; if it is not old, set this machine's clock"
    if error.verify_code == _NOT_YET:
        return "set this machine's clock"
    if error.verify_code == _OTHER_NAME:
        return f"connect to a name that the certificate has, or have it made for '{to.host}'"
    return f"{to.root_certificates} did not sign it: ask the operator for the right file"


def _expiry(where: str, secure: ssl.SSLSocket) -> Check:
    certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    days = (certificate.not_valid_after_utc.timestamp() - time.time()) / 86400
    found = f"{where}: {secure.version()}, good until {certificate.not_valid_after_utc:%Y-%m-%d} ({days:.0f} days)"
    if days < SHORT_OF_TIME:
        return Check("server certificate", "note", found, "have the operator renew it in time")
    return Check("server certificate", "right", found)


def _clock(to: Endpoint, secure: ssl.SSLSocket) -> Check:
    """The server's clock by the Date of whatever it answers; half of the way there and back is taken off."""
    begun = time.time()
    try:
        with contextlib.closing(http.client.HTTPConnection(to.host, to.port, timeout=PATIENCE)) as client:
            client.sock = secure
            client.request("GET", "/health", headers={"Connection": "close"})
            reply = client.getresponse()
            told = reply.getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        cure = "" if to.certificate else "; if it asks for a certificate, name it with --certificate"
        return Check("clock", "note", f"the server says no time: {error}", f"compare the clocks by hand{cure}")
    off = _off(begun, told)
    if off is None:
        return Check("clock", "note", "the server says no time", "compare the clocks by hand")
    found = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server's"
    if off > AHEAD or abs(off) > FAR:
        return Check("clock", "wrong", found, "set it (NTP): messages and certificates are good for a time")
    if abs(off) > CLOSE:
        return Check("clock", "note", found, "set it (NTP)")
    return Check("clock", "right", found)


def _off(begun: float, told: str | None) -> float | None:
    """Seconds by which this machine's clock is ahead of a server that says its time; None if it says none."""
    if told is None:
        return None
    # The header has whole seconds: the middle of its second is the best guess.
    return (begun + time.time()) / 2 - (parsedate_to_datetime(told).timestamp() + 0.5)
