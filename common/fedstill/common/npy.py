"""Arrays from a stranger's bytes in NumPy's file format.

They are copied out after their declared type and size have been compared with what is really there.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import KnowledgeError, Reason

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']{1,9})', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18}, ?){0,31}[0-9]{0,18})\), \} *\n",
    re.DOTALL,
)
"""NumPy's file format, version 1.0, as `numpy.save` writes it. NumPy's own reader evaluates the header as Python."""

_NUMBERS = re.compile(r"<[fiu][248]|\|[iu]1")


def read_array(name: str, data: bytes) -> NDArray[np.generic]:
    """An array from its bytes: little-endian numbers in C order.

    Raises:
        KnowledgeError: if they are anything else, or fewer or more than declared.
    """
    header = _NPY.match(data)
    if header is None:
        raise KnowledgeError(f"array '{name}'", "expected NumPy's format, version 1.0, in C order")
    descr = header[1].decode("latin-1")
    if not _NUMBERS.fullmatch(descr):
        raise KnowledgeError(
            f"array '{name}' of type '{descr}'", "expected numbers of 8 to 64 bits", reason=Reason.TYPE
        )
    dtype = np.dtype(descr)
    shape = tuple(int(size) for size in header[2].split(b",") if size.strip())
    declared, there = math.prod(shape) * dtype.itemsize, len(data) - header.end()
    if declared != there:
        raise KnowledgeError(
            f"array '{name}' of {there} bytes", f"expected {declared} for shape {shape} of {dtype}", reason=Reason.SHAPE
        )
    try:
        # A copy: the bytes are read-only, and the stranger chose their alignment.
        return np.frombuffer(data, dtype, offset=header.end()).reshape(shape).copy()
    except ValueError as error:
        raise KnowledgeError(f"array '{name}' of shape {shape}", str(error), reason=Reason.SHAPE) from None
