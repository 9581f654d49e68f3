"""What a client's work may take of the machine: threads, memory, seconds. What goes beyond is stopped and refused."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from fedstill.client.site import Resources
from fedstill.common.errors import Reason, RefusalError


@contextmanager
def within(limits: Resources) -> Iterator[None]:
    """Work inside limits.

    Memory is limited by the system (RLIMIT_DATA: heap and private mappings, not files), for this process and as long as
    the block lasts. Time is measured by the system's timer, which only a process's main thread can be interrupted by.

    Raises:
        RefusalError: if the work needs more; the reason is "out-of-resources".
    """
    torch.set_num_threads(limits.threads)
    with _memory(limits.memory), _time(limits.seconds):
        yield


@contextmanager
def _memory(most: int) -> Iterator[None]:
    if not most:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise RefusalError(
            "the work", f"needs more than the {most} bytes that resources.memory allows", reason=Reason.RESOURCES
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise RefusalError(
            "the work", f"takes longer than the {seconds:g} s of resources.seconds", reason=Reason.RESOURCES
        )

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
