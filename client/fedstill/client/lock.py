"""One process at a time in a folder: two that share a store would answer for one client in two ways."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.common.errors import Reason, RefusalError
from fedstill.common.files import storage_error

PATIENCE = 10.0
"""Seconds that a process waits for another one to end, such as one whose SuperNode was killed."""

_PAUSE = 0.05


@contextmanager
def only_process(folder: Path, *, patience: float | None = None) -> Iterator[None]:
    """Hold a folder's lock inside the block. The system lets go of it when the process ends, however it ends.

    Args:
        folder: made if it is not there.
        patience: seconds to wait for a process that has it; None for PATIENCE.

    Raises:
        RefusalError: if another process keeps it; the reason is "busy".
        StorageError: if the folder cannot be written.
    """
    import fcntl

    path, end = folder / "lock", time.monotonic() + (PATIENCE if patience is None else patience)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise RefusalError(
                        f"store {folder}",
                        f"process {holder(folder) or 'unknown'} works in it",
                        "give each node a store of its own, and a key to one node",
                        reason=Reason.BUSY,
                    ) from None
            time.sleep(_PAUSE)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int:
    """The process that took a folder's lock last; 0 if nobody knows."""
    try:
        return int((folder / "lock").read_text())
    except (OSError, ValueError):
        return 0
