"""One process at a time in a folder: two would answer for one client, or play one run, in two ways."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.common.errors import Reason, RefusalError
from fedstill.common.files import storage_error

LOCK = "lock"
"""The file's name."""

PATIENCE = 10.0
"""Seconds that a process waits for another one to end, such as one whose SuperNode was killed."""

_PAUSE = 0.05


@contextmanager
def only_process(
    folder: Path,
    *,
    patience: float | None = None,
    what: str = "store",
    cure: str = "give each node a store of its own, and a key to one node",
) -> Iterator[None]:
    """Hold a folder's lock inside the block. The system lets go of it when the process ends, however it ends.

    Args:
        folder: made if it is not there.
        patience: seconds to wait for a process that has it; None for PATIENCE.
        what: the folder is, for the message.
        cure: what to do if another process keeps it.

    Raises:
        RefusalError: if another process keeps it; the reason is "busy".
        StorageError: if the folder cannot be written.
    """
    path, end = folder / LOCK, time.monotonic() + (PATIENCE if patience is None else patience)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        while not _taken(descriptor):
            if time.monotonic() >= end:
                found = f"process {holder(folder) or 'unknown'} works in it"
                raise RefusalError(f"{what} {folder}", found, cure, reason=Reason.BUSY)
            time.sleep(_PAUSE)
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise storage_error(path, error) from error
        yield
    finally:
        os.close(descriptor)


def held(folder: Path) -> bool:
    """Whether a process holds a folder's lock just now."""
    import fcntl

    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who look do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(folder: Path) -> int:
    """The process that took a folder's lock last; 0 if nobody knows."""
    try:
        return int((folder / LOCK).read_text())
    except (OSError, ValueError):
        return 0
