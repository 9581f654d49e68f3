"""TensorBoard events of a run: scalars of every committed step.

    <task>/clients/<client>/<measure>   <task>/mean/<measure>   <task>/server/<measure>
    run/bytes-up   run/bytes-down   run/seconds   run/accepted   run/rejected   run/abandoned

All that the events hold is in rounds.jsonl too. A resumed run therefore tells readers to forget what they have seen (a
session that starts at step 0) and writes the committed steps again: none is doubled, and none is missing that was
committed but not tracked before a crash. Older event files stay, for a TensorBoard that is reading one must find it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedstill.common.errors import UnsupportedError
from fedstill.common.files import storage_error
from fedstill.server.summary import mean, number, rejections

_PREFIX = "events.out.tfevents."


class TensorBoard:
    """Writes event files into a folder: one for each try of a run."""

    def __init__(self, folder: Path, *, committed: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begin an event file.

        Args:
            folder: its place; events of an earlier try of the run in it count no longer.
            committed: the steps of a resumed run that count, oldest first; they are written again.

        Raises:
            UnsupportedError: if tensorboard is not installed.
            StorageError: if the folder cannot be written.
        """
        try:
            from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]
            from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
        except ImportError:
            raise UnsupportedError(
                "tracker 'tensorboard'", "expected tensorboard to be installed", "pip install 'fedstill[simulations]'"
            ) from None
        self._folder = folder
        _await_next_second(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not EventFileWriter, whose thread writes when it likes: a disk that is full then is nobody's error.
            self._writer = RecordWriter((folder / f"{_PREFIX}{int(time.time()):010d}.{os.getpid()}").open("wb"))
        except OSError as error:
            raise storage_error(folder, error) from error
        self._write(0, time.time(), file_version="brain.Event:2")
        self._write(0, time.time(), session_log=SessionLog(status=SessionLog.START))
        now = time.time() - sum(record["seconds"] for record in committed)
        for record in committed:
            now += record["seconds"]
            self._write_step(record, now)
        self._flush()

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Write the scalars of a step; a measure that is no finite number is left out.

        Raises:
            StorageError: if the disk refuses.
        """
        self._write_step(record, time.time())
        self._flush()

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()

    def _write_step(self, record: Mapping[str, Any], when: float) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        self._write(record["step"], when, summary=Summary(value=values))

    def _write(self, step: int, when: float, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self._writer.write(Event(wall_time=when, step=step, **content).SerializeToString())
        except OSError as error:
            raise storage_error(self._folder, error) from error

    def _flush(self) -> None:
        try:
            self._writer.flush()
        except OSError as error:
            raise storage_error(self._folder, error) from error


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The scalars of a step, as (tag, value); lists, such as measures by class, are none."""
    for task, part in record["tasks"].items():
        yield from _numbers(f"{task}/server", part["server"])
        for client, measures in part["clients"].items():
            yield from _numbers(f"{task}/clients/{client}", measures)
        yield from _numbers(f"{task}/mean", _means(part["clients"].values()))
    yield "run/bytes-up", float(record["bytes"]["up"])
    yield "run/bytes-down", float(record["bytes"]["down"])
    yield "run/seconds", float(record["seconds"])
    yield "run/accepted", float(len(record["accepted"]))
    yield "run/rejected", float(len(rejections(record)))
    yield "run/abandoned", float(len(record["abandoned"]))


def _await_next_second(folder: Path) -> None:
    """Readers take event files by name, and a name begins with the second in which its file was made."""
    made = (path.name.removeprefix(_PREFIX).split(".")[0] for path in folder.glob(f"{_PREFIX}*"))
    wait = max((int(second) for second in made if second.isdecimal()), default=0) + 1 - time.time()
    if 0 < wait <= 1:
        time.sleep(wait)


def _means(clients: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    measures = list(clients)
    keys = dict.fromkeys(key for one in measures for key in one)
    return {key: mean(number(one.get(key)) for one in measures) for key in keys}


def _numbers(prefix: str, measures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, item in measures.items():
        value = number(item)
        if value is not None:
            yield f"{prefix}/{key}", value
