"""What `fedstill doctor --site` looks at: whether this site could take part in a round right now, and if not, why."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fedstill.client.connection import Endpoint, connection
from fedstill.client.guard import site_guard
from fedstill.client.holdings import Holding, own_task
from fedstill.client.ledger import DAY, Ledger
from fedstill.client.resources import within
from fedstill.client.site import Site, read_site
from fedstill.common.checkup import Check, flower_settings, packages, software
from fedstill.common.data.content import read_text
from fedstill.common.data.pack import Pack, read_pack
from fedstill.common.errors import DataError, FedstillError, MismatchError, RefusalError, StorageError
from fedstill.common.files import write_atomically
from fedstill.common.handshake import check_software
from fedstill.common.lock import holder, only_process
from fedstill.common.models import build_model, parameter_count

LEAST_DISK = 100 * 2**20
"""Bytes; below it a student of a large model may not find room, and every version is written beside the last."""

LEAST_MEMORY = 2**29
"""Bytes that a client's process needs, most of them for torch."""


def examine_site(path: Path, endpoint: Endpoint | None = None) -> list[Check]:
    """Look at a site.

    Args:
        path: its client.toml.
        endpoint: of the federation, with the node's key; None looks at nothing outside the machine.
    """
    checks = [*software(), *packages(extras=()), *flower_settings()]
    site = None
    try:
        site = read_site(path)
        checks.append(Check("client.toml", "right", f"{path}: site '{site.name}'"))
    except FedstillError as error:
        checks.append(_wrong("client.toml", error))
    checks += _private(path)
    if site is not None:
        checks += [*_pack(site), _store(site), _ledger(site), _memory(site)]
    if endpoint is not None:
        checks += connection(endpoint)
    return checks


def _wrong(what: str, error: FedstillError) -> Check:
    return Check(what, "wrong", error.fault, error.cure or "see docs/join.md")


def _private(path: Path) -> Iterator[Check]:
    """Who may read the file that decides what leaves."""
    if path.is_file() and path.stat().st_mode & stat.S_IWOTH:
        yield Check("client.toml", "wrong", f"everybody on this machine may write {path}", f"chmod o-w {path}")


def _pack(site: Site) -> Iterator[Check]:
    try:
        pack = read_pack(Path(site.public))
        for name in site.tasks:
            pack.task(name)
    except FedstillError as error:
        yield _wrong("public pack", error)
        return
    yield _release(pack)
    for name in site.tasks:
        yield _pinned(site, pack, name)
        yield from _tokenizer(pack, name)
        yield from _task(site, pack, name)


def _release(pack: Pack) -> Check:
    found = f"{pack.folder}: {', '.join(pack.tasks)}, made by fedstill {pack.fedstill}"
    try:
        check_software(pack.fedstill)
    except MismatchError:
        return Check("public pack", "note", found, "install the version that the federation has")
    return Check("public pack", "right", found)


def _pinned(site: Site, pack: Pack, name: str) -> Check:
    what, digest = f"pinned samples of {name}", pack.tasks[name].proxy_digest
    if not site.policy.proxy_digests:
        cure = f'set policy.proxy-digests = ["{digest}"] once you have looked at the pack'
        return Check(what, "note", f"{digest}, not pinned: another pack would be answered about as well", cure)
    try:
        site_guard(site.policy, None).check_pinned(name, digest)
    except RefusalError as error:
        return _wrong(what, error)
    return Check(what, "right", digest)


def _tokenizer(pack: Pack, name: str) -> Iterator[Check]:
    told = pack.tasks[name]
    file = told.options.get("tokenizer")
    if not file:
        return
    what = f"tokenizer of {name}"
    try:
        digest = hashlib.sha256(read_text(pack.folder / str(file)).encode()).hexdigest()
    except DataError as error:
        yield _wrong(what, error)
        return
    if digest == told.tokenizer:
        yield Check(what, "right", digest[:12])
    else:
        yield Check(what, "wrong", f"{digest[:12]}, expected {told.tokenizer[:12]}", "fetch the pack again")


def _task(site: Site, pack: Pack, name: str) -> Iterator[Check]:
    what = f"data of {name}"
    try:
        with within(site.resources):
            held = own_task(site, pack, name)
    except FedstillError as error:
        yield _wrong(what, error)
        return
    yield _examples(what, held)
    try:
        model = build_model(held.model, held.spec, seed=0)
    except FedstillError as error:
        yield _wrong(f"model of {name}", error)
        return
    yield Check(f"model of {name}", "right", f"{held.model}, {parameter_count(model):,} parameters")


def _examples(what: str, held: Holding) -> Check:
    private, holdout = held.data.private, held.data.holdout
    found = f"{len(private)} examples to learn from, {len(holdout)} kept aside, {len(held.proxy)} public samples"
    if private.targets.dtype == torch.int64 and private.targets.dim() == 1:
        there = {held.spec.classes[label] for label in torch.unique(private.targets).tolist()}
        found += f"; {len(there)} of {len(held.spec.classes)} classes"
        missing = [one for one in held.spec.classes if one not in there]
        if missing:
            some = ", ".join(missing[:5])
            return Check(what, "note", f"{found}, none of {some}", "no fault: the student hears of them from others")
    if not len(holdout):
        return Check(what, "note", f"{found}; the student cannot be measured here", "set the task's 'holdout'")
    return Check(what, "right", found)


def _store(site: Site) -> Check:
    folder = Path(site.store)
    probe = folder / f".doctor-{os.getpid()}"
    try:
        with only_process(folder, patience=0):
            write_atomically(probe, b"x" * 4096)
    except FedstillError as error:
        if isinstance(error, RefusalError):
            return Check(
                "store", "note", f"process {holder(folder)} works in {folder} now", "look again when it is done"
            )
        return _wrong("store", error)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / 1e9:.1f} GB free"
    if free < LEAST_DISK:
        return Check("store", "wrong", found, "make room: students are written beside the old ones")
    if folder.stat().st_mode & stat.S_IROTH:
        return Check("store", "note", f"{found}; everybody on this machine may read it", f"chmod 700 {folder}")
    return Check("store", "right", found)


def _ledger(site: Site) -> Check:
    limit = site.policy.rounds_per_day
    try:
        times = Ledger(Path(site.store) / "ledger").times()
    except StorageError as error:
        return _wrong("ledger", error)
    now = time.time()
    recent = sum(moment > now - DAY for moment in times)
    found = f"{recent} orders in the last 24 hours, {f'{limit} are allowed' if limit else 'without a limit'}"
    ahead = sum(moment > now + 60 for moment in times)
    if ahead:
        days = (max(times) - now) / DAY
        return Check(
            "ledger",
            "wrong" if limit and ahead >= limit else "note",
            f"{found}; {ahead} of them up to {days:.1f} days ahead of the clock",
            "set the clock; if it was ahead once and is right now, put the lines' time right in the store's ledger",
        )
    if limit and recent >= limit:
        return Check("ledger", "note", found, "no fault: orders are refused until a day has passed")
    return Check("ledger", "right", found)


CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container is told the memory that it may have, in either version of control groups."""


def _memory(site: Site) -> Check:
    limit = site.resources.memory
    free = _available()
    found = f"{free / 1e9:.1f} GB available" + (f", {limit / 1e9:.1f} GB allowed" if limit else ", without a limit")
    cure = f"a client's process needs {LEAST_MEMORY / 1e9:.1f} GB at least, most of it for torch"
    if 0 < limit < LEAST_MEMORY or free < LEAST_MEMORY:
        return Check("memory", "wrong", found, cure)
    if limit > free:
        return Check("memory", "note", found, "end something else, or lower resources.memory")
    return Check("memory", "right", found)


def _available() -> int:
    """Bytes of memory that a new process could have: of the machine, and of the container."""
    return min([_free(), *(int(text) for path in CONTAINER if (text := _text(path)).isdigit())])


def _text(path: Path) -> str:
    """A file's text, "" if there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
