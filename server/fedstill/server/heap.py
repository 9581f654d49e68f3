"""Memory that is free again goes back to the system.

Python looks for things that hold each other, and nobody else holds, by the number of objects and not by their size. And
messages come in all sizes: the C library keeps what they leave free between things that stay.
"""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Let go of what nobody reaches, and let glibc give back the pages that hold nothing; other C libraries are let be.

    It takes some 0.2 seconds.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
