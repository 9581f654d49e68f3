"""Durable steps: what is saved comes back to the bit, and damage falls back to the step before."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.context import remember
from fedstill.common.errors import RunFolderError, StorageError
from fedstill.common.knowledge import Knowledge, Parameters, SoftLabels
from fedstill.common.scenario import parse
from fedstill.common.sources import override, read_table
from fedstill.server import checkpoint
from fedstill.server.folder import RunFolder, differences, new_folder, open_folder
from fedstill.server.record import Attempt, StepRecord, Traffic, to_line
from fedstill.server.state import RunState, TaskState

LABELS = SoftLabels(
    "categorical", ("a", "ü"), np.array([4, 1]), np.array([[0.25, 0.75], [1, 0]], np.float32), 2.0, "probabilities"
)
WEIGHTS = Parameters("m", {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "steps": np.array(7)})
SCENARIO = parse(read_table("digits"))


def state(step: int, knowledge: Knowledge | None = LABELS) -> RunState:
    weight = torch.full((2, 2), float(step))
    memory = {"momentum/deep": torch.tensor([1, step])}
    told = remember(knowledge)
    own = {} if told is None else {"a/client": told, "another": replace(told, samples=told.samples + 1)}
    pool = {"disagreement": torch.tensor([0.5, float("nan")]), "labels.rounds": torch.tensor([step])}
    task = TaskState(knowledge, {"weight": weight, "tied": weight}, memory, own, told, pool=pool)
    record = {"kind": "round", "step": step, "text": "line\u2028break\x85 \ud800", "loss": float("nan")}
    return RunState(step, {"pets": task, "empty": TaskState(None, {}, {})}, {"client-0": step}, record)


def step_of(found: RunState | None) -> int | None:
    if found is None:
        return None
    assert found.tasks["pets"].model["weight"].tolist() == [[found.step] * 2] * 2
    return found.step


@pytest.mark.parametrize("knowledge", [LABELS, WEIGHTS, None])
def test_a_state_comes_back_to_the_bit(tmp_path: Path, knowledge: Knowledge | None) -> None:
    checkpoint.save(tmp_path, state(3, knowledge))
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert step_of(found) == 3
    assert found.versions == {"client-0": 3}
    assert found.record == {**state(3).record, "loss": None}
    task = found.tasks["pets"]
    assert task.memory["momentum/deep"].tolist() == [1, 3]
    assert task.pool["disagreement"][0] == 0.5
    assert task.pool["disagreement"].isnan().tolist() == [False, True]
    assert task.pool["labels.rounds"].tolist() == [3]
    assert found.tasks["empty"].knowledge is None
    assert [found.tasks["empty"].own, found.tasks["empty"].heard] == [{}, None]
    before = state(3, knowledge).tasks["pets"]
    assert {name: own.digest for name, own in task.own.items()} == {
        name: own.digest for name, own in before.own.items()
    }
    assert (task.heard is None) == (before.heard is None) == (knowledge is not LABELS)
    assert type(task.knowledge) is type(knowledge)
    if knowledge is not None and task.knowledge is not None:
        assert task.knowledge.header() == knowledge.header()
        assert task.knowledge.arrays().keys() == knowledge.arrays().keys()
        for name, array in knowledge.arrays().items():
            np.testing.assert_array_equal(task.knowledge.arrays()[name], array)
            assert task.knowledge.arrays()[name].shape == array.shape


def test_nothing_was_committed(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint.newest(tmp_path) is None


def test_three_are_kept_and_a_forgotten_future_goes(tmp_path: Path) -> None:
    for step in range(6):
        checkpoint.save(tmp_path, state(step))
    assert sorted(os.listdir(tmp_path)) == [
        f"step-00000{step}.{suffix}" for step in (3, 4, 5) for suffix in ("json", "safetensors")
    ]
    checkpoint.save(tmp_path, state(4))
    assert step_of(checkpoint.newest(tmp_path)) == 4


def damage(folder: Path, step: int, how: str) -> None:
    manifest, tensors = folder / f"step-{step:06d}.json", folder / f"step-{step:06d}.safetensors"
    path = manifest if "manifest" in how else tensors
    content = bytearray(path.read_bytes())
    if "delete" in how:
        path.unlink()
    elif "truncate" in how:
        path.write_bytes(bytes(content[: len(content) // 2]))
    elif "empty" in how:
        path.write_bytes(b"")
    else:
        content[int(how.rsplit(maxsplit=1)[-1]) % len(content)] ^= 1
        path.write_bytes(bytes(content))


HOWS = [f"{what} {how}" for what in ("manifest", "tensors") for how in ("delete", "truncate", "empty")]
FLIPS = [f"{what} flip {place}" for what in ("manifest", "tensors") for place in (0, 20, 81, 82, 83, 90, 150, -2, -1)]


@pytest.mark.parametrize("how", HOWS + FLIPS)
def test_damage_falls_back_to_the_step_before(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step))
    damage(tmp_path, 2, how)
    with caplog.at_level(logging.WARNING):
        # A flip in the last byte of the manifest turns its closing newline into something else: that counts, too.
        assert step_of(checkpoint.newest(tmp_path)) == 1
    assert ("step 2 is damaged" in caplog.text) == (how != "manifest delete")


def test_a_run_is_not_silently_begun_anew_when_all_are_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step))
        damage(tmp_path, step, "tensors truncate")
    with pytest.raises(RunFolderError, match=r"checkpoints of steps \[2, 1\]: expected a sound one"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("refused", ["safetensors", "json"])
def test_a_full_disk_leaves_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(refused):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    checkpoint.save(tmp_path, state(1))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(StorageError, match="make room and resume the run"):
            checkpoint.save(tmp_path, state(2))
    assert step_of(checkpoint.newest(tmp_path)) == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    checkpoint.save(tmp_path, state(2))
    assert step_of(checkpoint.newest(tmp_path)) == 2


class TestRunFolder:
    def committed(self, path: Path, steps: int = 3) -> RunFolder:
        folder = new_folder(path / "run", SCENARIO, data_dir=None, extra={"note": 7})
        for step in range(1, steps + 1):
            folder.commit(state(step))
        return folder

    def steps(self, folder: RunFolder) -> list[int]:
        return [record["step"] for record in folder.records()]

    def test_a_new_folder(self, tmp_path: Path) -> None:
        folder = new_folder(tmp_path / "run", SCENARIO, data_dir=tmp_path / "data", extra={"note": 7})
        assert folder.name == "run"
        assert folder.scenario() == SCENARIO
        assert folder.config()["note"] == 7
        assert folder.config()["data-dir"] == str(tmp_path / "data")
        assert folder.records() == []
        assert folder.restore() is None
        folder.add(roster={"client-0": {"t": 1}})
        assert folder.config()["roster"] == {"client-0": {"t": 1}}
        assert folder.scenario() == SCENARIO

    def test_a_folder_that_is_there_already(self, tmp_path: Path) -> None:
        self.committed(tmp_path, 0)
        with pytest.raises(RunFolderError, match="exists already"):
            new_folder(tmp_path / "run", SCENARIO, data_dir=None)
        (tmp_path / "file").write_text("")
        with pytest.raises(RunFolderError, match="exists already"):
            new_folder(tmp_path / "file", SCENARIO, data_dir=None)
        (tmp_path / "empty").mkdir()
        assert new_folder(tmp_path / "empty", SCENARIO, data_dir=None).scenario() == SCENARIO

    def test_another_scenario_is_refused_with_the_keys_that_differ(self, tmp_path: Path) -> None:
        self.committed(tmp_path)
        assert open_folder(tmp_path / "run", SCENARIO).name == "run"
        other = parse(override(read_table("digits"), {"seed": 9, "algorithm.temperature": 3.0}))
        with pytest.raises(RunFolderError, match=r"algorithm\.temperature: 0\.3 / 3\.0; seed: 1 / 9"):
            open_folder(tmp_path / "run", other)

    @pytest.mark.parametrize("content", [None, b"", b"a = ", b"\xff", b"scenario = 7\n"])
    def test_no_folder_of_a_run(self, tmp_path: Path, content: bytes | None) -> None:
        with pytest.raises(RunFolderError, match="is not there"):
            open_folder(tmp_path / "none", SCENARIO)
        if content is not None:
            (tmp_path / "config.toml").write_bytes(content)
        with pytest.raises(RunFolderError, match="name the folder of a run"):
            open_folder(tmp_path, SCENARIO)

    def test_commit_and_restore(self, tmp_path: Path) -> None:
        folder = self.committed(tmp_path)
        assert self.steps(folder) == [1, 2, 3]
        before = (folder.path / "rounds.jsonl").read_bytes()
        assert step_of(folder.restore()) == 3
        assert (folder.path / "rounds.jsonl").read_bytes() == before
        assert folder.records()[0]["text"] == "line\u2028break\x85 \ud800"

    @pytest.mark.parametrize("tail", [b'{"kind":"rou', b"\xff\xfe", b'{"step":4}'])
    def test_a_torn_last_line_is_left_out(self, tmp_path: Path, tail: bytes) -> None:
        folder = self.committed(tmp_path)
        path = folder.path / "rounds.jsonl"
        path.write_bytes(path.read_bytes() + tail)
        assert self.steps(folder) == [1, 2, 3]
        folder.restore()
        folder.commit(state(4))
        assert self.steps(folder) == [1, 2, 3, 4]

    def test_a_crash_between_checkpoint_and_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = self.committed(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", _refusing_append(open))
            with pytest.raises(StorageError, match=r"rounds\.jsonl: cannot be written"):
                folder.commit(state(4))
        assert self.steps(folder) == [1, 2, 3]
        assert step_of(folder.restore()) == 4
        assert self.steps(folder) == [1, 2, 3, 4]

    def test_lines_after_a_lost_checkpoint_go(self, tmp_path: Path) -> None:
        folder = self.committed(tmp_path)
        damage(folder.path / "checkpoints", 3, "tensors flip 100")
        assert step_of(folder.restore()) == 2
        assert self.steps(folder) == [1, 2]

    def test_history_survives_when_all_checkpoints_are_damaged(self, tmp_path: Path) -> None:
        folder = self.committed(tmp_path)
        for step in (1, 2, 3):
            damage(folder.path / "checkpoints", step, "manifest truncate")
        with pytest.raises(RunFolderError, match="expected a sound one"):
            folder.restore()
        assert self.steps(folder) == [1, 2, 3]


def _refusing_append(real: Any) -> Any:
    def opened(file: Any, mode: str = "r", *others: Any, **options: Any) -> Any:
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, mode, *others, **options)

    return opened


def test_differences_name_the_keys() -> None:
    mine = {"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": 1}}
    assert list(differences(mine, mine)) == []
    assert list(differences(mine, {"a": 1, "b": {"c": 2, "d": 4}, "e": 5, "g": 6})) == [
        "b.d: 3 / 4",
        "e: {'f': 1} / 5",
        "g: None / 6",
    ]


def test_a_line_is_ascii_json_without_nan() -> None:
    line = to_line({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, "ü\u2028\n")}})
    assert line == '{"a":null,"b":[null,1.5],"c":{"d":[1,"\\u00fc\\u2028\\n"]}}'
    assert line.isascii()


def test_a_step_as_the_world_sees_it() -> None:
    attempt = Attempt(2, ("a", "b"), ("a",), ())
    record = StepRecord(
        kind="round",
        step=3,
        attempt=attempt,
        abandoned=[Attempt(1, ("a", "b"), (), ())],
        traffic=Traffic(up={"a": 10}, down={"a": 3, "b": 4}),
        seconds=1.23456,
        server={"pets": {"accuracy": 0.5}},
        clients={"pets": {"a": {"accuracy": 0.25}}, "more": {}},
        restarted=("a",),
    )
    table = json.loads(to_line(record.table()))
    assert table["bytes"] == {"up": 10, "down": 7, "clients": {"a": {"up": 10, "down": 3}, "b": {"up": 0, "down": 4}}}
    assert table["tasks"] == {
        "more": {"server": {}, "clients": {}},
        "pets": {"server": {"accuracy": 0.5}, "clients": {"a": {"accuracy": 0.25}}},
    }
    assert (table["attempt"], table["abandoned"][0]["attempt"], table["seconds"]) == (2, 1, 1.235)
    assert (table["cohort"], table["accepted"], table["restarted"]) == (["a", "b"], ["a"], ["a"])
