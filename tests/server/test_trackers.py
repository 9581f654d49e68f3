from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.errors import StorageError, UnsupportedError
from fedstill.server.folder import RunFolder
from fedstill.server.trackers import Tracker
from fedstill.server.trackers.tensorboard import TensorBoard, scalars

RECORD: dict[str, Any] = {
    "kind": "round",
    "step": 3,
    "accepted": ["a", "b"],
    "rejected": [{"client": "c", "reason": "no-answer", "detail": ""}],
    "abandoned": [{"rejected": [{"client": "a", "reason": "no-answer", "detail": ""}]}],
    "bytes": {"up": 10, "down": 20, "clients": {}},
    "seconds": 1.5,
    "tasks": {
        "t": {
            "server": {"accuracy": 0.5, "class-accuracy": [0.5, None]},
            "clients": {"a": {"trained.accuracy": 0.25, "trained.loss": None}, "b": {"trained.accuracy": 0.75}},
        }
    },
}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_scalars_of_a_step() -> None:
    assert dict(scalars(RECORD)) == {
        "t/server/accuracy": 0.5,
        "t/clients/a/trained.accuracy": 0.25,
        "t/clients/b/trained.accuracy": 0.75,
        "t/mean/trained.accuracy": 0.5,
        "run/bytes-up": 10.0,
        "run/bytes-down": 20.0,
        "run/seconds": 1.5,
        "run/accepted": 2.0,
        "run/rejected": 2.0,
        "run/abandoned": 1.0,
    }


def test_events_are_read_back(tmp_path: Path) -> None:
    tracker: Tracker = TensorBoard(tmp_path / "tensorboard")
    tracker.on_step(RECORD)
    tracker.on_step({**RECORD, "step": 4, "seconds": 2.5})
    tracker.close()
    found = read(tmp_path / "tensorboard")
    assert found["run/seconds"] == [(3, 1.5), (4, 2.5)]
    assert found["t/mean/trained.accuracy"] == [(3, 0.5), (4, 0.5)]
    assert "t/clients/a/trained.loss" not in found


def test_resumed_run_doubles_and_loses_no_step(make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    records = make_run(rounds=4).records()
    folder = tmp_path / "tensorboard"
    first = TensorBoard(folder)
    for record in (*records[:2], {**records[2], "seconds": 99.0}):  # the last of these was never committed
        first.on_step(record)
    first.close()
    second = TensorBoard(folder, committed=records[:3])
    for record in records[3:]:
        second.on_step(record)
    second.close()
    assert read(folder)["run/seconds"] == [(record["step"], record["seconds"]) for record in records]


def test_reader_that_saw_the_first_try_forgets_it(make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = make_run(rounds=2).records()
    folder = tmp_path / "tensorboard"
    first = TensorBoard(folder)
    for record in records:
        first.on_step(record)
    first.close()
    events = EventAccumulator(str(folder))
    events.Reload()
    second = TensorBoard(folder, committed=records[:2])
    second.close()
    events.Reload()
    assert [one.step for one in events.Scalars("run/seconds")] == [0, 1]


def test_missing_tensorboard_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "tensorboard":
            raise ImportError("no module")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnsupportedError, match="tracker 'tensorboard': expected tensorboard to be installed"):
        TensorBoard(tmp_path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(StorageError, match="tensorboard"):
        TensorBoard(tmp_path / "tensorboard")
