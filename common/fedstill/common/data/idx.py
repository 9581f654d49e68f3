"""The idx format of MNIST: two zero bytes, a type, the number of dimensions, their sizes, the numbers (big-endian).

LeCun, Cortes & Burges, http://yann.lecun.com/exdb/mnist/ ("File formats for this page").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedstill.common.data.content import GZIP, read_content
from fedstill.common.errors import DataError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""NumPy's name of each of the format's types."""


def read_idx(path: Path) -> NDArray[np.generic]:
    """The array of an idx file (packed or not), in the machine's byte order.

    Raises:
        DataError: if the file is missing, truncated or no idx file.
    """
    content = read_content(path)
    if not _is_header(content[:4]):
        raise DataError(f"{path} begins with {content[:4].hex(' ')}", "expected an idx file (00 00, type, dimensions)")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} of {len(content)} bytes", f"expected {content[3]} sizes", "fetch the file again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    kind = np.dtype(TYPES[content[2]])
    size = start + kind.itemsize * math.prod(shape)
    if len(content) != size:
        raise DataError(
            f"{path} of {len(content)} bytes",
            f"expected {size} for {' × '.join(map(str, shape))} numbers of {kind.itemsize} bytes",
            "fetch the file again",
        )
    numbers = np.frombuffer(content, kind, offset=start).reshape(shape)
    return numbers.astype(kind.newbyteorder("="))


def dimensions(path: Path) -> int:
    """Number of dimensions of an idx file, from its first bytes; 0 if it is none."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
        if head.startswith(GZIP):
            with gzip.open(path) as unpacked:
                head = unpacked.read(4)
    except (OSError, EOFError, zlib.error):
        return 0
    return head[3] if _is_header(head) else 0


def _is_header(head: bytes) -> bool:
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in TYPES and head[3] > 0
