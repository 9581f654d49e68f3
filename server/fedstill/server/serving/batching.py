"""Requests that wait at the same time are computed at once: one thread for each model, one batch after the other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import check
from fedstill.server.serving.model import BLOCK, Served


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes on.

    Attributes:
        batch: rows that are computed at once; a request of more is computed in one piece of its own.
        delay: seconds that the first request of a batch waits for others.
        block: rows are computed in multiples of so many, see `model.BLOCK`; 1 for the shortest time of a single row,
            whose last bits then depend on the batch it is in.
        requests: that may wait or be computed at the same time; the next is refused.
        rows: of one request.
        message: bytes of one request.
    """

    batch: int = 64
    delay: float = 0.0
    block: int = BLOCK
    requests: int = 64
    rows: int = 1024
    message: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        check.at_least(1, batch=self.batch, block=self.block, requests=self.requests, rows=self.rows)
        check.at_least(1, message=self.message)
        check.between(0, 10, delay=self.delay)


@dataclass(slots=True)
class Counts:
    """What a batcher has done.

    Attributes:
        batches: computed.
        rows: in them, without padding.
        dropped: requests whose deadline had passed, or whose client had gone, before they were computed.
        waiting: requests that wait now.
    """

    batches: int = 0
    rows: int = 0
    dropped: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    inputs: NDArray[np.generic]
    deadline: float
    answer: Future[Tensor] = field(default_factory=Future)


class Batcher:
    """Computes a model's answers in a thread of its own, from `start` to `close`.

    Args:
        served: the model.
        limits: of batches.
    """

    def __init__(self, served: Served, limits: Limits) -> None:
        self._served, self._limits = served, limits
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"model {served.name}", daemon=True)
        self._counts = Counts()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Compute what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def counts(self) -> Counts:
        """What has been done so far."""
        return replace(self._counts, waiting=len(self._waiting))

    def works(self) -> bool:
        """Whether it can be asked."""
        return self._thread.is_alive() and not self._closed

    def submit(self, inputs: NDArray[np.generic], *, deadline: float = float("inf")) -> Future[Tensor]:
        """Let rows be computed.

        Args:
            inputs: (N, …), checked.
            deadline: on the monotonic clock, after which nobody waits for the answer.

        Returns:
            Raw outputs (N, …, C) to come. It is cancelled if the deadline passes before they are computed; whoever
            cancels it keeps them from being computed.
        """
        job = _Job(inputs, deadline)
        with self._changed:
            if self._closed:
                job.answer.cancel()
            else:
                self._waiting.append(job)
                self._changed.notify()
        return job.answer

    def _work(self) -> None:
        for jobs in self._batches():
            with _told(jobs):
                outputs = self._served.answer([job.inputs for job in jobs], block=self._limits.block)
                self._counts.batches += 1
                self._counts.rows += len(outputs)
                sizes = [len(job.inputs) for job in jobs]
                for job, part in zip(jobs, torch.split(outputs, sizes), strict=True):
                    job.answer.set_result(part)

    def _batches(self) -> Iterator[list[_Job]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._changed.wait_for(self._enough, timeout=self._limits.delay)
                jobs = self._taken()
            if jobs:
                yield jobs

    def _enough(self) -> bool:
        return self._closed or self._rows() >= self._limits.batch

    def _rows(self) -> int:
        return sum(len(job.inputs) for job in self._waiting)

    def _most(self) -> int:
        """Rows of the next batch at most: whole blocks, if there is one, for a part of one costs as much."""
        rows = min(self._rows(), self._limits.batch)
        return rows // self._limits.block * self._limits.block or rows

    def _taken(self) -> list[_Job]:
        """The first jobs that go into a batch, without those that nobody waits for any more."""
        jobs: list[_Job] = []
        rows, most, now = 0, self._most(), time.monotonic()
        while self._waiting and (not jobs or rows + len(self._waiting[0].inputs) <= most):
            job = self._waiting.popleft()
            if job.deadline <= now:
                job.answer.cancel()
            if job.answer.set_running_or_notify_cancel():
                jobs.append(job)
                rows += len(job.inputs)
            else:
                self._counts.dropped += 1
        return jobs


@contextmanager
def _told(jobs: list[_Job]) -> Iterator[None]:
    """Whatever goes wrong with a batch is told to those who wait for it; the thread goes on."""
    try:
        yield
    except Exception as error:
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(error)
