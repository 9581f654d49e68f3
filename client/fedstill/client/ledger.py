"""What a client was asked and what it answered, on its own disk: how much a day, and no round twice in two ways.

A file for each run, a line for each order that was begun and one for each answer:

    {"step": "round 3", "time": 1764300000.0, "order": "5f1c…"}
    {"step": "round 3", "answer": "77ab…"}

Lines are appended and flushed to the disk before work begins and before an answer leaves. A line that a crash cut off
was never acted on; it is taken away before the next one is written.

Days are the last 24 hours of the machine's clock. Orders that lie ahead of the clock count as well: turning the clock
back gives nobody a second day. A clock that was ahead for a time, and is right again, leaves lines ahead of it, which
count until it has passed them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedstill.common.errors import RefusalError, StorageError
from fedstill.common.files import flush_folder, storage_error
from fedstill.common.knowledge import Knowledge
from fedstill.common.messages import Answer, Order
from fedstill.common.scenario import codec_table

DAY = 24 * 3600.0
"""Seconds."""

_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Asked:
    """One order in the ledger.

    Attributes:
        time: when it was begun first, in seconds since 1970.
        order: digest of what was asked.
        answer: digest of what was answered; "" if nothing was.
    """

    time: float
    order: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A folder of ledgers, one for each run. One process at a time works with it.

    Attributes:
        folder: made when it is needed.
    """

    folder: Path

    def runs(self) -> list[str]:
        """The names of all runs in it."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))

    def read(self, run: str) -> dict[str, Asked]:
        """What was asked in a run, by step.

        Raises:
            StorageError: if a line is damaged: then nobody knows what was answered.
        """
        path = self.folder / f"{run}{_SUFFIX}"
        found: dict[str, Asked] = {}
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except FileNotFoundError:
            return found
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
                step = str(entry["step"])
                if "order" in entry:
                    found[step] = Asked(float(entry["time"]), str(entry["order"]))
                else:
                    found[step] = Asked(found[step].time, found[step].order, str(entry["answer"]))
            except (ValueError, KeyError, TypeError):
                raise StorageError(
                    f"{path}: line {number + 1}", "expected what was asked or answered", "see what happened to the disk"
                ) from None
        return found

    def times(self) -> list[float]:
        """When each order of all runs was begun, oldest first."""
        return sorted(asked.time for run in self.runs() for asked in self.read(run).values())

    def begin(self, run: str, step: str, order: str, *, limit: int = 0) -> None:
        """Note that an order is begun; one that is sent again counts once.

        Args:
            run: name of the run.
            step: what is asked for, such as "round 3".
            order: digest of the whole order.
            limit: orders in 24 hours; 0 for no limit.

        Raises:
            RefusalError: if another order was begun for this step, or there were too many.
            StorageError: if the disk refuses.
        """
        known = self.read(run).get(step)
        if known is not None:
            if known.order != order:
                raise RefusalError(
                    f"{step} of run '{run}' with another content",
                    f"expected the order that was begun {_ago(known.time)}: a step is answered in one way",
                    "give a new run another name",
                )
            return
        if limit:
            self._check_day(limit)
        self._append(run, {"step": step, "time": time.time(), "order": order})

    def _check_day(self, limit: int) -> None:
        since = time.time() - DAY
        recent = [moment for moment in self.times() if moment > since]
        if len(recent) >= limit:
            free = recent[len(recent) - limit] + DAY
            raise RefusalError(
                f"{len(recent)} orders in the last 24 hours",
                f"this client works on {limit} (policy.rounds-per-day)",
                f"the next one from {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(free))}",
            )

    def answered(self, run: str, step: str, answer: str) -> None:
        """Note an answer before it leaves; the same one may leave again.

        Raises:
            RefusalError: if another one was noted for this step.
            StorageError: if the disk refuses.
        """
        known = self.read(run)[step].answer
        if known and known != answer:
            raise RefusalError(
                f"a second answer to {step} of run '{run}'",
                "expected the first one again: the student or the data has changed since",
                "go on with the next round",
            )
        if not known:
            self._append(run, {"step": step, "answer": answer})

    def _append(self, run: str, entry: Mapping[str, Any]) -> None:
        path = self.folder / f"{run}{_SUFFIX}"
        line = json.dumps(entry).encode() + b"\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            # Unbuffered: what a full disk did not take is not tried again when the file is closed.
            with open(path, "ab", buffering=0) as stream:
                end = _whole_lines(path)
                stream.truncate(end)
                try:
                    if stream.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(stream.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        stream.truncate(end)
                    raise
            if new:
                flush_folder(self.folder)
        except OSError as error:
            raise storage_error(path, error) from error


def _whole_lines(path: Path) -> int:
    """Bytes up to the last end of a line."""
    return path.read_bytes().rfind(b"\n") + 1


def _ago(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def order_digest(order: Order) -> str:
    """Of everything that an answer depends on; the number of the attempt is no part of it."""
    tasks = {
        name: [task.proxy_digest, _array(task.samples), _knowledge(task.knowledge)]
        for name, task in sorted(order.tasks.items())
    }
    method = order.method
    told = [
        order.round,
        order.rounds,
        order.seed,
        order.version,
        [method.algorithm, dict(method.options), asdict(method.training), codec_table(method.codec)],
        tasks,
    ]
    return _digest(json.dumps(told, sort_keys=True).encode())


def answer_digest(answer: Answer) -> str:
    """Of everything that an answer says of private data; the number of the attempt is no part of it."""
    tasks = {
        name: [task.proxy_digest, task.examples, _knowledge(task.knowledge), sorted(task.metrics.items())]
        for name, task in sorted(answer.tasks.items())
    }
    return _digest(json.dumps([answer.client, answer.round, answer.version, tasks]).encode())


def _knowledge(knowledge: Knowledge | None) -> Any:
    if knowledge is None:
        return None
    parts = {name: _array(array) for name, array in sorted(knowledge.arrays().items())}
    return [knowledge.kind, dict(knowledge.header()), parts]


def _array(array: Any) -> str:
    return _digest(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
