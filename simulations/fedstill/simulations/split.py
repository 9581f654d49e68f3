"""A scenario's data as files: the public pack for all, and each client's own examples with a ready client.toml."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fedstill.client.examples import write_examples
from fedstill.common.data.federation import ClientData, deal, federate
from fedstill.common.data.pack import Pack, Shared, pinned, write_pack
from fedstill.common.errors import ConfigError, DataError, RunFolderError
from fedstill.common.files import write_atomically
from fedstill.common.scenario import Scenario, to_toml

PUBLIC, SITES = "public", "sites"

_HEAD = """\
# What this site holds, gives and lets out. No message of a server changes any of it.
# Every key: docs/join.md. What is wrong: fedstill doctor --site client.toml
"""


@dataclass(frozen=True, slots=True)
class Dealt:
    """What was written.

    Attributes:
        pack: the public pack.
        sites: the folder of each site, by its name.
        clients: which client of the scenario each site is.
    """

    pack: Pack
    sites: Mapping[str, Path]
    clients: Mapping[str, str]


def split(
    scenario: Scenario,
    folder: Path,
    *,
    data_dir: Path | None,
    sites: Sequence[str] = (),
    public_only: bool = False,
    labels: bool = True,
) -> Dealt:
    """Write a scenario's data.

    Args:
        scenario: whose split is written: that of a simulated run of it.
        folder: a new or empty one.
        data_dir: folder of data sets.
        sites: names in place of the clients' own, in their order; students' seeds depend on names.
        public_only: write the pack alone.
        labels: write the public samples' labels, if they are known, so that the server can measure the consensus.

    Raises:
        RunFolderError: if the folder holds something.
        DataError: if data is missing, broken or too little.
        ConfigError: for names that do not fit.
        StorageError: if the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"folder {folder}", "exists already", "name a new one")
    names = federate(scenario, data_dir).names
    own = _names(names, sites)
    shares = deal(scenario, data_dir)
    tasks = {
        name: Shared(
            task=scenario.tasks[name].task,
            data=share.data,
            group=share.group,
            public=share.public.inputs,
            labels=share.public.targets if labels else None,
            test=share.test,
        )
        for name, share in shares.items()
    }
    pack = write_pack(folder / PUBLIC, tasks, data_dir=data_dir)
    if public_only:
        return Dealt(pack, {}, {})
    found = {}
    for number, (client, site) in enumerate(zip(names, own, strict=True)):
        models = {name: plan.model(number) for name, plan in scenario.tasks.items() if client in shares[name].parts}
        for name in models:
            if not len(shares[name].parts[client].private):
                raise DataError(f"client {client} without examples of task '{name}'", "expected at least one")
        data = {name: shares[name].client(client) for name in models}
        found[site] = _write_site(folder / SITES / site, data, models, pack)
    return Dealt(pack, found, dict(zip(own, names, strict=True)))


def site_files(folder: Path) -> list[Path]:
    """The client.toml of each site that `split` wrote, in the order of names.

    Raises:
        RunFolderError: if there is none.
    """
    found = sorted((folder / SITES).glob("*/client.toml"))
    if not found:
        raise RunFolderError(
            f"folder {folder}", "expected sites/NAME/client.toml in it", "write it with fedstill split"
        )
    return found


def _names(clients: Sequence[str], sites: Sequence[str]) -> tuple[str, ...]:
    own = tuple(sites) or tuple(clients)
    if len(own) != len(clients) or len(set(own)) != len(own):
        raise ConfigError(
            f"{len(own)} sites {', '.join(own)}", f"expected {len(clients)} different names, one for each client"
        )
    for name in own:
        if PurePath(name).name != name or name in ("", ".", ".."):
            raise ConfigError(f"site '{name}'", "expected the name of a folder", "name the sites with --sites")
    return own


def _write_site(place: Path, data: Mapping[str, ClientData], models: Mapping[str, str], pack: Pack) -> Path:
    place.mkdir(parents=True)
    place.chmod(0o700)
    for name, examples in data.items():
        write_examples(place / f"{name}.safetensors", examples)
    table = {
        "name": place.name,
        "public": os.path.relpath(pack.folder, place),
        "store": "store",
        "policy": {"proxy-digests": pinned({name: pack.tasks[name] for name in data})},
        "tasks": {name: {"model": model, "examples": f"{name}.safetensors"} for name, model in models.items()},
    }
    write_atomically(place / "client.toml", (_HEAD + to_toml(table)).encode())
    return place
