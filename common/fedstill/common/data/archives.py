"""Files in a folder, a tar or a zip archive, by name; nothing is unpacked to disk under a name."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.data.content import GZIP, XZ, unreadable
from fedstill.common.errors import DataError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")

_ZIP = b"PK"
_BROKEN_ARCHIVE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, zipfile.BadZipFile)
_BROKEN_MEMBER = (*_BROKEN_ARCHIVE, RuntimeError, NotImplementedError)
"""A zip archive's file may be encrypted (RuntimeError) or packed in a way that Python does not know."""


@dataclass(frozen=True, slots=True)
class FileStore:
    """Files by name.

    Attributes:
        names: paths inside the folder or archive, sorted.
        read: the bytes of a file by its name.
    """

    names: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def open_files(source: Path, suffixes: tuple[str, ...], *, noun: str = "files") -> Iterator[FileStore]:
    """The files with those suffixes in a folder or an archive, told by its content, for as long as the block lasts.

    Args:
        source: a folder, a tar archive (packed or not) or a zip archive.
        suffixes: in lower case, such as ".png".
        noun: what the files are, for messages.

    Raises:
        DataError: if there are none, or the archive is damaged.
    """
    with ExitStack() as stack:
        store = _folder(source, suffixes) if source.is_dir() else _archive(source, suffixes, stack)
        if not store.names:
            raise DataError(f"{source}", f"expected {noun}", f"their names have to end in {', '.join(suffixes)}")
        yield store


def archive_in(path: Path) -> Path:
    """A folder's only archive, if it has one; else the path itself."""
    archives = [file for file in path.iterdir() if file.name.lower().endswith(ARCHIVES)] if path.is_dir() else []
    return archives[0] if len(archives) == 1 else path


def _folder(source: Path, suffixes: tuple[str, ...]) -> FileStore:
    def read(name: str) -> bytes:
        try:
            return (source / name).read_bytes()
        except OSError as error:
            raise unreadable(source / name, error) from None

    paths = (path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return FileStore(tuple(sorted(path.relative_to(source).as_posix() for path in paths)), read)


def _archive(source: Path, suffixes: tuple[str, ...], stack: ExitStack) -> FileStore:
    with open(source, "rb") as stream:
        head = stream.read(len(XZ))
    return (_zip if head.startswith(_ZIP) else _tar)(source, head, suffixes, stack)


def _zip(source: Path, head: bytes, suffixes: tuple[str, ...], stack: ExitStack) -> FileStore:
    try:
        archive = stack.enter_context(zipfile.ZipFile(source))
    except _BROKEN_ARCHIVE as error:
        raise DataError(f"{source}", f"is no whole zip archive: {error}", "fetch the file again") from None
    members = {info.filename: info for info in archive.infolist() if info.filename.lower().endswith(suffixes)}

    def read(name: str) -> bytes:
        try:
            return archive.read(members[name])
        except _BROKEN_MEMBER as error:
            raise DataError(f"{source}: {name}", f"cannot be unpacked: {error}", "fetch the file again") from None

    return FileStore(tuple(sorted(members)), read)


def _tar(source: Path, head: bytes, suffixes: tuple[str, ...], stack: ExitStack) -> FileStore:
    try:
        archive = stack.enter_context(_seekable(source, head, stack))
        members = {
            member.name: member
            for member in archive.getmembers()
            if member.isfile() and member.name.lower().endswith(suffixes)
        }
    except _BROKEN_ARCHIVE as error:
        raise DataError(f"{source}", f"is no whole tar archive: {error}", "fetch the file again") from None

    def read(name: str) -> bytes:
        stream = archive.extractfile(members[name])
        content = stream.read() if stream else b""
        if len(content) != members[name].size:
            raise DataError(f"{source}: {name}", f"expected {members[name].size} bytes", "fetch the file again")
        return content

    return FileStore(tuple(sorted(members)), read)


def _seekable(source: Path, head: bytes, stack: ExitStack) -> tarfile.TarFile:
    """The archive, unpacked to a nameless temporary file if it is packed: a packed stream knows no way back."""
    if not head.startswith((GZIP, XZ)):
        return tarfile.open(source, "r:")
    plain = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    with gzip.open(source) if head.startswith(GZIP) else lzma.open(source) as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
    plain.seek(0)
    return tarfile.open(fileobj=plain, mode="r:")
