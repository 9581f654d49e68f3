"""Certificates and keys of a federation: an authority, the server, every site, the operator; Flower's node keys.

Elliptic curves throughout (P-256 for certificates, P-384 for node keys, in OpenSSH's format: the only one that Flower
takes). Private keys are readable by their owner alone.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedstill.common.files import write_atomically

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 397
"""How long they are valid: ten years, and the 13 months that browsers accept."""

SITE, OPERATOR, SERVER = "site", "operator", "server"
"""Roles, in a certificate's organisational unit: the reverse proxy reads them."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_authority(folder: Path, name: str) -> Authority:
    """Make an authority and write ca.crt and ca.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} authority", "authority")
    certificate = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.crt", folder / "ca.key", certificate, key)
    return Authority(certificate, key)


def read_authority(folder: Path) -> Authority:
    """The authority that a folder holds."""
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # `new_authority` makes no other
    return Authority(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key)


def new_certificate(
    authority: Authority, certificate: Path, key: Path, *, name: str, role: str, hosts: tuple[str, ...] = ()
) -> None:
    """Make a key and a certificate for it, and write both.

    Args:
        authority: who signs.
        certificate, key: the files.
        name: common name; of a site, the site's.
        role: `SITE`, `OPERATOR` or `SERVER`.
        hosts: names and addresses under which a server is reached.
    """
    own = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] if role == SERVER else [ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(_name(name, role), authority.certificate.subject, own.public_key(), CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    _write(certificate, key, builder.sign(authority.key, hashes.SHA256()), own)


def new_node_key(path: Path) -> str:
    """Make a node's key pair, write it (the public one as .pub), and give the public one as Flower's header has it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write_private(path, private)
    write_atomically(path.with_suffix(".pub"), public + b"\n")
    return header_of(path.with_suffix(".pub"))


def header_of(public: Path) -> str:
    """What a node with that public key (OpenSSH) sends in the header `flwr-public-key`."""
    key = serialization.load_ssh_public_key(public.read_bytes())
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode("ascii")


def days_left(certificate: Path) -> int:
    """Whole days until a certificate ends; below 0 if it has."""
    end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (end - datetime.datetime.now(datetime.UTC)).days


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of devices go wrong by minutes.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(common: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fedstill"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    certificate_path: Path, key_path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(key_path, private)
    write_atomically(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))


def _write_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(content)
