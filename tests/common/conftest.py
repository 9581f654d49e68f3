"""Writers of the small files that the tests of readers need."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}

WriteIdx = Callable[[Path, NDArray[np.generic]], None]
WriteTar = Callable[[Path, Mapping[str, bytes]], None]
Png = Callable[[NDArray[np.uint8]], bytes]


@pytest.fixture(scope="session")
def write_idx() -> WriteIdx:
    """Write an array as an idx file, gzipped if the name says so."""

    def write(path: Path, array: NDArray[np.generic]) -> None:
        big = array.astype(array.dtype.newbyteorder(">"))
        head = bytes([0, 0, IDX_CODES[array.dtype.str[1:]], array.ndim])
        content = head + b"".join(size.to_bytes(4, "big") for size in array.shape) + big.tobytes()
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)

    return write


@pytest.fixture(scope="session")
def write_tar() -> WriteTar:
    """Write files as a tar archive; the end of its name says how it is packed."""

    def write(path: Path, files: Mapping[str, bytes]) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        content = stream.getvalue()
        packed = {".gz": gzip.compress(content, mtime=0), ".xz": lzma.compress(content)}
        path.write_bytes(packed.get(path.suffix, content))

    return write


@pytest.fixture(scope="session")
def png() -> Png:
    """PNG bytes of a grey (height, width) or coloured (height, width, 3) image."""

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        return stream.getvalue()

    return encode
