"""Files that are whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from fedstill.common.errors import StorageError


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    Args:
        path: its folder is made if it is not there.
        content: what to write.
        durable: wait until the disk has it (file and folder).

    Raises:
        StorageError: if the disk is full or refuses; the old file is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(beside, path)
        if durable:
            flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it is there only if something went wrong
            beside.unlink()


def storage_error(path: Path, error: OSError) -> StorageError:
    """What went wrong with a file, and the cure."""
    cure = "make room and resume the run" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return StorageError(f"{path}", f"cannot be written: {error.strerror or error}", cure)


def flush_folder(folder: Path) -> None:
    """Wait until the disk knows which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
