"""What Flower's processes are started with, on either side."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FLOWER: Mapping[str, str] = MappingProxyType(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
)
"""No reports home, no question for updates, no packages installed at run time."""

PROCESSES: Mapping[str, str] = MappingProxyType({**FLOWER, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"})
"""The same, one thread of torch's for each process, and memory that many threads take from two places: glibc would give
each its own, of which a SuperLink never gives back what was free once."""
