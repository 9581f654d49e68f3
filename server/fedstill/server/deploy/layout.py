"""Where everything of a federation lies.

federation.toml      name, address, sites
ca/                  the certificate authority; its key signs sites, and is needed for nothing else
server/              for the machine that the sites connect to
  server.crt …       certificate of proxy and SuperLink
  nginx.conf         the reverse proxy: who reaches which path
  flwr/              Flower's own settings, for the operator's commands
  app/               the Flower app that a run submits: configuration only
  nodes/             public node keys of the sites
  state.db           the SuperLink's database
  runs/              run folders
sites/NAME/          for one site: certificate, node key, node.toml, systemd unit, README
run/                 processes that `deploy up` has started: state, logs
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from fedstill.common.errors import ConfigError, RunFolderError
from fedstill.common.scenario import to_toml

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Site:
    """One site's part of the federation's folder.

    Attributes:
        name: of the site.
        path: its folder, which goes to the site.
    """

    name: str
    path: Path

    @property
    def certificate(self) -> Path:
        """Its certificate; the key lies beside it, as site.key."""
        return self.path / "site.crt"

    @property
    def node_key(self) -> Path:
        """The private key by which Flower knows the node; the public one lies beside it, as node.pub."""
        return self.path / "node.key"

    @property
    def config(self) -> Path:
        """What `fedstill node` reads."""
        return self.path / "node.toml"


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation and its folder.

    Attributes:
        path: the folder.
        name: in certificates and units.
        host: by which sites reach the server: a DNS name or an IP address.
        port: of the reverse proxy.
        superlink_port: of the SuperLink, on the server's loopback.
        sites: names.
    """

    path: Path
    name: str
    host: str
    port: int
    superlink_port: int
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (self.name, *self.sites):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"name '{name}'", "expected 1 to 40 of a-z, 0-9 and -, not at the ends", "such as 'hospital-a'"
                )
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"sites {list(self.sites)}", "expected at least one, each once")
        for port in (self.port, self.superlink_port):
            if not 1 <= port <= 65535:
                raise ConfigError(f"port {port}", "expected 1 to 65535")
        if self.port == self.superlink_port:
            raise ConfigError(f"port {self.port}", "expected another one for the SuperLink, which the proxy hides")
        if not self.host or re.search(r"[\s/;{}\"']", self.host):
            raise ConfigError(f"host '{self.host}'", "expected a DNS name or an IP address")

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.path / "server"

    @property
    def runs(self) -> Path:
        """Where run folders go."""
        return self.server / "runs"

    @property
    def processes(self) -> Path:
        """Where the processes that run here are noted, and their logs."""
        return self.path / "run"

    @property
    def authority(self) -> Path:
        """The certificate of the certificate authority; its key lies beside it, as ca.key."""
        return self.path / "ca" / "ca.crt"

    def node_key(self, name: str) -> Path:
        """A site's public node key, where the server keeps it."""
        return self.server / "nodes" / f"{name}.pub"

    def site(self, name: str) -> Site:
        """One site's part."""
        return Site(name, self.path / "sites" / name)

    def save(self) -> None:
        """Write federation.toml."""
        table = {key: value for key, value in asdict(self).items() if key != "path"}
        (self.path / "federation.toml").write_text(to_toml({**table, "sites": list(self.sites)}), encoding="utf-8")


def open_federation(path: Path) -> Federation:
    """The federation that a folder holds.

    Raises:
        RunFolderError: if it holds none.
    """
    try:
        table = tomllib.loads((path / "federation.toml").read_text(encoding="utf-8"))
        return Federation(path=path.resolve(), **{**table, "sites": tuple(table.get("sites", ()))})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        raise RunFolderError(
            f"federation {path}", f"federation.toml cannot be read: {error}", "make one with 'fedstill deploy init'"
        ) from None


def federation_of(run: Path) -> Federation:
    """The federation among whose runs a run folder lies.

    Raises:
        ConfigError: if it lies in none.
    """
    runs = run.resolve().parent
    if runs.parts[-2:] != ("server", "runs") or not (runs.parents[1] / "federation.toml").is_file():
        raise ConfigError(
            f"run {run}",
            "expected a folder in DIR/server/runs of a federation, or --federation DIR",
            "a simulated run goes on with 'fedstill simulate --resume RUN'",
        )
    return open_federation(runs.parents[1])
