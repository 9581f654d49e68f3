"""Writes a federation's folder: identities, and configuration from the templates beside this file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template

from fedstill.common import __version__
from fedstill.common.environment import PROCESSES
from fedstill.common.errors import ConfigError, RunFolderError
from fedstill.common.scenario import to_toml
from fedstill.server.deploy import identities
from fedstill.server.deploy.layout import Federation, Site

INSTALLED = "/opt/fedstill/bin"
"""Where systemd units look for the programs."""

BODY, ANNOUNCED = 64, 16
"""MiB of an object; KiB of any other request: 73 bytes announce an object, and 220 of them are a message of 1 GiB."""

RATE, BURST = 50, 200
"""Requests a second of one site, and how many at once: a round of 200 kB is about 20 requests."""

LOOPBACK = ("localhost", "127.0.0.1")

SITE_FILES = ("node.toml", "ca.crt", "site.crt", "site.key", "node.key")


def init(federation: Federation) -> None:
    """Write everything that a federation needs.

    Raises:
        RunFolderError: if something is in the folder already.
    """
    if federation.path.exists() and any(federation.path.iterdir()):
        raise RunFolderError(f"folder {federation.path}", "is not empty", "name a new one")
    authority = identities.new_authority(federation.path / "ca", federation.name)
    federation.save()
    _server(federation, authority)
    for name in federation.sites:
        _site(federation, authority, federation.site(name))
    _write_all(_files_of_all_sites(federation))
    federation.processes.mkdir(exist_ok=True)


def add(federation: Federation, name: str) -> Federation:
    """Add a site: its folder, and a place at the door. Give the federation as it is then.

    Raises:
        ConfigError: if there is one of that name.
    """
    if name in federation.sites:
        raise ConfigError(f"site '{name}'", "is there already", "revoke it first, or choose another name")
    grown = replace(federation, sites=(*federation.sites, name))
    _site(grown, identities.read_authority(federation.path / "ca"), grown.site(name))
    grown.save()
    _write_all(_files_of_all_sites(grown))
    return grown


def renew(federation: Federation, name: str = "") -> None:
    """Write new certificates and keys, signed by the same authority: the others keep theirs.

    Args:
        federation: whose.
        name: a site, which gets a certificate and a node key; "" for the server and the operator.

    Raises:
        ConfigError: if there is no site of that name.
    """
    authority = identities.read_authority(federation.path / "ca")
    if not name:
        _server_identities(federation, authority)
        return
    if name not in federation.sites:
        raise ConfigError(f"site '{name}'", f"expected one of {', '.join(federation.sites)}")
    _site_identities(federation, authority, federation.site(name))
    _write_all(_files_of_all_sites(federation))


def remove(federation: Federation, name: str) -> Federation:
    """Take away a site's place at the door; its folder stays, as a record. Give the federation as it is then.

    Raises:
        ConfigError: if there is none of that name, or no other.
    """
    if name not in federation.sites:
        raise ConfigError(f"site '{name}'", f"expected one of {', '.join(federation.sites)}")
    shrunk = replace(federation, sites=tuple(site for site in federation.sites if site != name))
    shrunk.save()
    _write_all(_files_of_all_sites(shrunk))
    return shrunk


def upgrade(federation: Federation) -> list[Path]:
    """Write configuration as this version of fedstill has it; certificates, keys, `node.toml` and runs stay.

    Returns:
        Files that are new or others than before; as it was, each lies beside itself, with `.old` at its name's end.
    """
    changed = []
    here = [federation.site(name) for name in federation.sites if federation.site(name).path.is_dir()]
    wanted = {**_server_files(federation), **_files_of_all_sites(federation)}
    for site in here:
        wanted |= _site_files(federation, site)
    for path, text in wanted.items():
        if path.is_file():
            if path.read_text(encoding="utf-8") == text:
                continue
            path.replace(path.with_name(f"{path.name}.old"))
        _write(path, text)
        changed.append(path)
    return changed


def superlink_arguments(federation: Federation) -> list[str]:
    """Arguments of `flower-superlink`; paths are below the federation's folder, in which it works."""
    return [
        *("--host", "127.0.0.1"),
        *("--port", str(federation.superlink_port)),
        *("--ssl-ca-certfile", "server/ca.crt"),
        *("--ssl-certfile", "server/server.crt"),
        *("--ssl-keyfile", "server/server.key"),
        *("--database", "server/state.db"),
        *("--isolation", "process"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def superexec_arguments(federation: Federation) -> list[str]:
    """Arguments of `flower-superexec`; it works in the federation's folder."""
    address = f"127.0.0.1:{federation.superlink_port}"
    return ["--runtime-api-address", address, "--root-certificates", "server/ca.crt"]


def _server(federation: Federation, authority: identities.Authority) -> None:
    _server_identities(federation, authority)
    federation.runs.mkdir()
    _write_all(_server_files(federation))


def _server_files(federation: Federation) -> dict[Path, str]:
    server = federation.server
    words = {**_words(federation), "rate": RATE, "burst": BURST, "body": BODY, "announced": ANNOUNCED}
    return {
        server / "nginx.conf": _filled("nginx.conf", words),
        server / "app" / "pyproject.toml": _filled("app.toml", words),
        federation.path / "README.md": _filled("README.md", words),
        **{
            server / "systemd" / f"fedstill-{unit}.service": _filled(f"{unit}.service", words)
            for unit in ("superlink", "superexec", "proxy")
        },
    }


def _server_identities(federation: Federation, authority: identities.Authority) -> None:
    server = federation.server
    hosts = tuple(dict.fromkeys((federation.host, *LOOPBACK)))
    for file, name, role, names in (
        ("server", federation.host, identities.SERVER, hosts),
        ("operator", "operator", identities.OPERATOR, ()),
    ):
        certificate, key = server / f"{file}.crt", server / f"{file}.key"
        identities.new_certificate(authority, certificate, key, name=name, role=role, hosts=names)
    shutil.copy(federation.authority, server / "ca.crt")


def _site_identities(federation: Federation, authority: identities.Authority, site: Site) -> None:
    identities.new_certificate(
        authority, site.certificate, site.path / "site.key", name=site.name, role=identities.SITE
    )
    identities.new_node_key(site.node_key)
    shutil.copy(federation.authority, site.path / "ca.crt")
    public = federation.node_key(site.name)
    public.parent.mkdir(exist_ok=True)
    shutil.copy(site.path / "node.pub", public)


def _site(federation: Federation, authority: identities.Authority, site: Site) -> None:
    _site_identities(federation, authority, site)
    number = federation.sites.index(site.name)
    table = {
        "name": site.name,
        "superlink": f"{federation.host}:{federation.port}",
        "port": 0,
        # A rehearsal, in which everybody computes its share of a public data set; a site of its own names its file:
        # site = "client.toml"
        "config": {"partition-id": number, "num-partitions": len(federation.sites)},
    }
    _write_all({site.config: to_toml(table), **_site_files(federation, site)})


def _site_files(federation: Federation, site: Site) -> dict[Path, str]:
    credentials = "\n".join(f"LoadCredential={name}:/etc/fedstill/{name}" for name in SITE_FILES)
    words = {**_words(federation), "site": site.name, "credentials": credentials}
    return {
        site.path / "node.service": _filled("node.service", words),
        site.path / "README.md": _filled("site-README.md", words),
    }


def _files_of_all_sites(federation: Federation) -> dict[Path, str]:
    """What names every site: which certificate may come in with which node key, and compose.yaml."""
    words = {**_words(federation), **_network(federation)}
    nodes = "".join(_filled("compose-node.yaml", {**words, "site": name}) for name in federation.sites)
    volumes = "volumes:\n" + "".join(f"  store-{name}:\n" for name in federation.sites)
    lines = [
        f'    "{_distinguished(name)}:{identities.header_of(federation.node_key(name))}" 1;'
        for name in federation.sites
    ]
    # A key of a map has to fit in a bucket of its hash table.
    door = (
        "map_hash_bucket_size 1024;\nmap_hash_max_size 65536;\n"
        'map "$ssl_client_s_dn:$http_flwr_public_key" $site {\n    default 0;\n' + "\n".join(lines) + "\n}\n"
    )
    return {
        federation.path / "compose.yaml": _filled("compose.yaml", {**words, "nodes": nodes + volumes}),
        federation.server / "sites.conf": door,
    }


def _words(federation: Federation) -> dict[str, object]:
    return {
        "name": federation.name,
        "host": federation.host,
        "port": federation.port,
        "superlink_port": federation.superlink_port,
        "folder": f"/srv/fedstill/{federation.name}",
        "bin": INSTALLED,
        "version": __version__,
        "environment": " ".join(f"{key}={value}" for key, value in PROCESSES.items()),
        "server_environment": f"FLWR_HOME=/srv/fedstill/{federation.name}/server/flwr",
        "superlink_arguments": " ".join(superlink_arguments(federation)),
        "superexec_arguments": " ".join(superexec_arguments(federation)),
        "superlink_list": _listed(superlink_arguments(federation)),
        "superexec_list": _listed(superexec_arguments(federation)),
    }


def _network(federation: Federation) -> dict[str, object]:
    """How containers of nodes reach the door under the name that node.toml has."""
    if federation.host in LOOPBACK:
        return {"alias": "fedstill", "node_network": "network_mode: service:loopback"}
    return {"alias": federation.host, "node_network": "networks: [default]"}


def _listed(words: Sequence[str]) -> str:
    return ", ".join(json.dumps(word) for word in words)


def _distinguished(site: str) -> str:
    """A site's name in its certificate, as nginx writes it (RFC 2253)."""
    return f"CN={site},OU={identities.SITE},O=fedstill"


def _filled(template: str, words: dict[str, object]) -> str:
    text = files("fedstill.server.deploy").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(words)


def _write_all(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
