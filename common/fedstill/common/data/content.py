"""Files as bytes or text, unpacked by content, with every fault of a file told as one kind of error."""

from __future__ import annotations

import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.common.errors import ConfigError, DataError

GZIP = b"\x1f\x8b"
XZ = b"\xfd7zXZ\x00"


def find_task_folder(folder: Path | None, source: str) -> Path:
    """Where a source lies: a folder of that name in the data folder, or the path itself.

    Raises:
        DataError: if neither is there.
    """
    path = Path(source)
    candidates = [path] if path.is_absolute() or folder is None else [folder / source, path]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise DataError(
        f"data '{source}'", f"expected it at {looked}", "name the folder of data with --data-dir or FEDSTILL_DATA"
    )


def read_content(path: Path) -> bytes:
    """A file's content; gzip and xz are unpacked, whatever the name says.

    Raises:
        DataError: if the file is missing, empty, truncated or no valid archive.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        if content.startswith(GZIP):
            content = gzip.decompress(content)
        elif content.startswith(XZ):
            content = lzma.decompress(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}", f"cannot be unpacked: {error}", "fetch the file again, it is damaged") from None
    if not content:
        raise DataError(f"{path}", "expected a file that is not empty", "fetch the file again")
    return content


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """A text file's content; gzip and xz are unpacked, and a byte order mark is left out.

    Raises:
        DataError: as `read_content`, or if the text is not in that encoding.
    """
    content = read_content(path)
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}", f"byte {error.start} is no {encoding}", "set the task's 'encoding', such as latin-1"
        ) from None


def check_encoding(encoding: str) -> None:
    """Refuse the name of an encoding that Python does not know.

    Raises:
        ConfigError: if it is not known.
    """
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ConfigError(f"encoding='{encoding}'", "expected a known encoding", "such as utf-8 or latin-1") from None


def find_files(folder: Path | None, source: str, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of a source, sorted: one file, all that match a pattern, or a folder's files with those suffixes.

    Args:
        folder: the data folder, or None.
        source: a path, or a pattern with "*", "?" or "[" in its last part.
        suffixes: such as ".csv"; a further ".gz" or ".xz" is allowed.

    Raises:
        DataError: if there is none.
    """
    parent, _, pattern = source.rpartition("/")
    if any(mark in pattern for mark in "*?["):
        place = find_task_folder(folder, parent or ".")
        found = sorted(path for path in place.glob(pattern) if path.is_file())
        rule = "expected a file that matches"
    else:
        place = find_task_folder(folder, source)
        if place.is_file():
            return (place,)
        found = sorted(path for path in place.iterdir() if path.is_file() and bare_name(path).endswith(suffixes))
        rule = f"expected a file that ends in {', '.join(suffixes)}"
    if not found:
        raise DataError(f"data '{source}' in {place}", rule, "name the files with the task's 'source'")
    return tuple(found)


_PARTS = {
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}


def part_of(name: str) -> str:
    """The part of a data set that a name's words tell of: "test", "validation" or else "train"."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((_PARTS[word] for word in words if word in _PARTS), "train")


def bare_name(path: Path) -> str:
    """A file's name in lower case without the suffix of its compression."""
    return path.name.lower().removesuffix(".gz").removesuffix(".xz")


@contextmanager
def told_as_data_errors(source: str) -> Iterator[None]:
    """Tell what the system or a missing package has against reading a source as errors of ours."""
    try:
        yield
    except OSError as error:
        raise unreadable(Path(error.filename or source), error) from None
    except ModuleNotFoundError as error:
        raise DataError(
            f"data '{source}'", f"expected the package '{error.name}'", "pip install 'fedstill[simulations]'"
        ) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """A file that the system does not give."""
    return DataError(f"{path}", f"cannot be read: {error.strerror or error}", "check the path and its permissions")
