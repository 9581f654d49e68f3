"""Trained models of a run: the server's, or a client's student, from the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedstill.client.store import Store
from fedstill.client.work import student_weights
from fedstill.common.errors import ConfigError, RunFolderError, nearest

if TYPE_CHECKING:
    from fedstill.server.folder import RunFolder
    from fedstill.server.serving.model import Served


def student_store(folder: RunFolder, client: str) -> Store:
    """Where a client of `fedstill simulate` keeps its students; with `--sites` it is a site's store of several runs."""
    own = folder.clients / client
    of_site = own / "runs" / folder.name
    return Store(of_site if of_site.is_dir() else own)


def students(folder: RunFolder, client: str) -> list[Served]:
    """A client's newest students, each under its task's name; the version is the round after which it was saved.

    Raises:
        ConfigError: if the run has no such client.
        RunFolderError: if its students are not in the run folder, or are damaged.
    """
    from fedstill.server.serving.loading import served, spec_of

    roster = folder.config().get("roster", {})
    if client not in roster:
        raise ConfigError(
            f"client '{client}' of run {folder.name}", "expected one of its clients", nearest(client, roster)
        )
    store = student_store(folder, client)
    version, saved = store.load(max(store.versions(), default=0))
    if not saved:
        raise RunFolderError(
            f"student of {client} in {store.folder}",
            "is not there, or damaged",
            "only runs of 'fedstill simulate' keep students in the run folder",
        )
    return [
        served(
            folder,
            spec_of(folder, task, told["classes"]),
            architecture=told["model"],
            weights=student_weights(saved, task),
            version=version,
        )
        for task, told in roster[client].items()
    ]
