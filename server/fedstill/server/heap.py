"""Memory that is free again goes back to the system.

Messages come in all sizes. The C library keeps what they leave free between things that stay, and a ServerApp would
grow by some percent over ten thousand of them.
"""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Let glibc give back the pages that hold nothing; with another C library nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
