"""Images in a folder or an archive, decoded to bytes of one size."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedstill.common.data.archives import FileStore, open_files
from fedstill.common.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")

_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def open_images(source: Path) -> AbstractContextManager[FileStore]:
    """The images of a folder or archive, encoded, for as long as the block lasts.

    Raises:
        DataError: if there are none, or the archive is damaged.
    """
    return open_files(source, SUFFIXES, noun="images")


def decode(
    store: FileStore, names: Sequence[str], *, size: tuple[int, int] | None = None, mode: str = ""
) -> NDArray[np.uint8]:
    """Images as bytes: (N, channels, height, width).

    Args:
        store: where they are.
        names: which ones, in this order.
        size: height and width to which they are resized; None if all are of one size.
        mode: "L" for grey ones (1 channel), "RGB" for coloured ones (3); "" for what the first one is.

    Raises:
        DataError: if one is damaged, or the sizes differ.
    """
    pixels: NDArray[np.uint8] | None = None
    for row, name in enumerate(names):
        image = _decode(store, name, mode, size)
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
    return np.empty((0, 1, *(size or (0, 0))), np.uint8) if pixels is None else pixels


def _decode(store: FileStore, name: str, mode: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    from PIL import Image

    content = store.read(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of mode {image.mode}, expected 8 bits a channel")
            plain = image.convert(mode or ("L" if image.mode in ("1", "L", "LA") else "RGB"))
            return np.asarray(plain.resize(size[::-1], Image.Resampling.BILINEAR) if size else plain, dtype=np.uint8)
    except (*_BROKEN_IMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"image {name}", f"cannot be read: {error}", "remove it or fetch it again") from None


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} × {shape[1]}"
