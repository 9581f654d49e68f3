"""Images in a folder or a tar archive, by name; nothing is unpacked to disk under a name."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedstill.common.data.content import GZIP, XZ, unreadable
from fedstill.common.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")

_BROKEN_ARCHIVE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Encoded images by name.

    Attributes:
        names: paths inside the folder or archive, sorted.
        read: the bytes of an image by its name.
    """

    names: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def open_images(source: Path) -> Iterator[ImageStore]:
    """The images of a folder or of a tar archive (packed or not), for as long as the block lasts.

    Raises:
        DataError: if there are none, or the archive is damaged.
    """
    with ExitStack() as stack:
        store = _folder(source) if source.is_dir() else _archive(source, stack)
        if not store.names:
            raise DataError(f"{source}", "expected images", f"their names have to end in {', '.join(SUFFIXES)}")
        yield store


def decode(store: ImageStore, names: Sequence[str], *, side: int = 0) -> NDArray[np.uint8]:
    """Images as bytes: (N, channels, height, width). The first one says whether they are grey (1) or coloured (3).

    Args:
        store: where they are.
        names: which ones, in this order.
        side: height and width to which they are resized; 0 if all are of one size.

    Raises:
        DataError: if one is damaged, or the sizes differ.
    """
    pixels: NDArray[np.uint8] | None = None
    mode = ""
    for row, name in enumerate(names):
        image = _decode(store, name, mode, side)
        mode = mode or ("L" if image.ndim == 2 else "RGB")
        channels_last = image.reshape(*image.shape[:2], -1)
        if pixels is None:
            pixels = np.empty((len(names), channels_last.shape[2], *channels_last.shape[:2]), np.uint8)
        if channels_last.shape[:2] != pixels.shape[2:]:
            raise DataError(
                f"image {name} of {_size(channels_last.shape[:2])} pixels",
                f"expected {_size(pixels.shape[2:])} like the first",
                "set the task's 'side' to resize them",
            )
        pixels[row] = channels_last.transpose(2, 0, 1)
    return np.empty((0, 1, side, side), np.uint8) if pixels is None else pixels


def _decode(store: ImageStore, name: str, mode: str, side: int) -> NDArray[np.uint8]:
    from PIL import Image

    content = store.read(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of mode {image.mode}, expected 8 bits a channel")
            plain = image.convert(mode or ("L" if image.mode in ("1", "L", "LA") else "RGB"))
            return np.asarray(plain.resize((side, side), Image.Resampling.BILINEAR) if side else plain, dtype=np.uint8)
    except (*_BROKEN_IMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"image {name}", f"cannot be read: {error}", "remove it or fetch it again") from None


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _folder(source: Path) -> ImageStore:
    def read(name: str) -> bytes:
        try:
            return (source / name).read_bytes()
        except OSError as error:
            raise unreadable(source / name, error) from None

    paths = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return ImageStore(tuple(sorted(path.relative_to(source).as_posix() for path in paths)), read)


def _archive(source: Path, stack: ExitStack) -> ImageStore:
    try:
        archive = stack.enter_context(_seekable(source, stack))
        members = {
            member.name: member
            for member in archive.getmembers()
            if member.isfile() and member.name.lower().endswith(SUFFIXES)
        }
    except _BROKEN_ARCHIVE as error:
        raise DataError(f"{source}", f"is no whole tar archive: {error}", "fetch the file again") from None

    def read(name: str) -> bytes:
        stream = archive.extractfile(members[name])
        content = stream.read() if stream else b""
        if len(content) != members[name].size:
            raise DataError(f"{source}: {name}", f"expected {members[name].size} bytes", "fetch the file again")
        return content

    return ImageStore(tuple(sorted(members)), read)


def _seekable(source: Path, stack: ExitStack) -> tarfile.TarFile:
    """The archive, unpacked to a nameless temporary file if it is packed: a packed stream knows no way back."""
    with open(source, "rb") as stream:
        head = stream.read(len(XZ))
    if not head.startswith((GZIP, XZ)):
        return tarfile.open(source, "r:")
    plain = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    with gzip.open(source) if head.startswith(GZIP) else lzma.open(source) as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
    plain.seek(0)
    return tarfile.open(fileobj=plain, mode="r:")
