from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fedstill.common.data.texts import word_ids
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.outputs import IGNORE
from fedstill.common.task import TaskData
from fedstill.common.tasks.intent import IntentTask
from fedstill.common.tasks.intent_slots import IntentSlotsTask
from fedstill.common.tasks.slots import SlotsTask

KINDS = (IntentTask, SlotsTask, IntentSlotsTask)


def said(*chunks: str | tuple[str, str]) -> dict[str, Any]:
    """A command of texts and of (text, slot)."""
    parts = [{"text": one} if isinstance(one, str) else {"text": one[0], "entity": one[1]} for one in chunks]
    return {"data": parts}


MUSIC = [said("Play ", ("Édith Piaf", "artist"), " on ", ("Sp", "service"), ("", "year")), said("stop it")]
BOOKS = [said(("Rate", "act"), " it ", ("5", "value"), "\n")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file is latin-1, as in the original; extracts of a full part and other files count nothing."""
    with zipfile.ZipFile(tmp_path / "snips.zip", "w") as archive:
        full = json.dumps({"PlayMusic": MUSIC}, ensure_ascii=False)
        archive.writestr("a/PlayMusic/train_PlayMusic_full.json", full.encode("latin-1"))
        archive.writestr("a/PlayMusic/train_PlayMusic.json", json.dumps({"PlayMusic": MUSIC[:1]}))
        archive.writestr("a/PlayMusic/validate_PlayMusic.json", json.dumps({"PlayMusic": MUSIC[1:]}))
        archive.writestr("a/RateBook/train_RateBook.json", json.dumps({"RateBook": BOOKS}))
        archive.writestr("a/about.json", "{}")
        archive.writestr("a/LICENSE", "free")
    return tmp_path


def loaded(kind: Any, folder: Path) -> TaskData:
    data: TaskData = kind("snips.zip", vocabulary=100, length=5).load(folder)
    return data


def ids(*words: str) -> list[int]:
    return [99, *word_ids([words], vocabulary=99, length=5)[0].tolist()]


def test_slots_by_hand(folder: Path) -> None:
    data = loaded(SlotsTask, folder)
    assert data.classes == ("O", *(f"{mark}-{kind}" for kind in ("act", "artist", "service", "value") for mark in "BI"))
    assert data.pool.inputs.tolist() == [
        ids("play", "édith", "piaf", "on", "sp"),
        ids("stop", "it"),
        ids("rate", "it", "5"),
    ]
    assert data.pool.targets.tolist() == [
        [IGNORE, 0, 3, 4, 0, 5],
        [IGNORE, 0, 0, IGNORE, IGNORE, IGNORE],
        [IGNORE, 1, 0, 7, IGNORE, IGNORE],
    ]
    assert (data.vocabulary, data.positions) == (100, (6,))
    assert data.test is not None
    assert data.test.targets.tolist() == [[IGNORE, 0, 0, IGNORE, IGNORE, IGNORE]]


def test_three_tasks_on_the_same_inputs(folder: Path) -> None:
    intent, slots, both = (loaded(kind, folder) for kind in KINDS)
    for other in (slots, both):
        assert torch.equal(intent.pool.inputs, other.pool.inputs)
        assert other.pool.strata is not None
        assert torch.equal(intent.pool.targets, other.pool.strata)
        assert intent.pool.groups == other.pool.groups == ("PlayMusic", "PlayMusic", "RateBook")
        assert intent.test is not None
        assert other.test is not None
        assert torch.equal(intent.test.inputs, other.test.inputs)
    assert intent.classes == ("PlayMusic", "RateBook")
    assert intent.pool.targets.tolist() == [0, 0, 1]
    assert intent.positions == ()
    assert both.classes == intent.classes + slots.classes
    assert both.pool.targets[:, 0].tolist() == [0, 0, 1]
    words = slots.pool.targets[:, 1:]
    assert torch.equal(both.pool.targets[:, 1:], torch.where(words == IGNORE, words, words + 2))


def test_joint_measure() -> None:
    classes = ("Music", "Books", "O", "B-a", "I-a")
    targets = torch.tensor([[0, 3, 4, IGNORE], [1, 2, 3, 2], [1, 2, 2, 2]])
    labels = torch.tensor([[0, 3, 4, 2], [1, 2, 2, 2], [0, 2, 2, 2]])
    logits = torch.nn.functional.one_hot(labels, 5).float()
    # A tag at position 0 and an intent behind it cannot win, whatever their score.
    logits[:, 0, 3] = 9
    logits[:, 1:, 0] = 9
    measures = IntentSlotsTask().measure(logits, targets, classes)
    assert measures == {
        "slot-f1": pytest.approx(2 / 3),
        "intent-accuracy": pytest.approx(2 / 3),
        "frame-accuracy": pytest.approx(1 / 3),
    }
    assert next(iter(measures)) == "slot-f1"


def test_measures_of_the_parts() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[2, 1, 0], [0, 0, 0]]), 3).float()
    targets = torch.tensor([[IGNORE, 1, 2], [IGNORE, 0, IGNORE]])
    assert SlotsTask().measure(logits, targets, ("O", "B-a", "I-a")) == {
        "slot-f1": 0.0,
        "token-f1": pytest.approx(2 / 3),
    }
    assert IntentTask().measure(torch.eye(2), torch.tensor([0, 1]), ("a", "b")) == {"accuracy": 1.0, "macro-f1": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "train_A_full.json: is no JSON"),
        ("[]", "expected an object with a list 'A'"),
        ('{"B": []}', "expected an object with a list 'A'"),
        ('{"A": []}', "expected a command"),
        ('{"A": [3]}', 'command 3: expected {"data"'),
        ('{"A": [{"text": "x"}]}', 'expected {"data"'),
        ('{"A": [{"data": [{"entity": "x"}]}]}', 'expected {"data"'),
        ('{"A": [{"data": [{"text": 3}]}]}', 'expected {"data"'),
    ],
)
def test_damaged_commands(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train_A_full.json").write_text(content)
    for kind in KINDS:
        with pytest.raises(DataError, match=message):
            kind(str(tmp_path)).load(None)


def test_missing_parts_and_wrong_options(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"expected files train_INTENT_full\.json"):
        SlotsTask(str(tmp_path)).load(None)
    (tmp_path / "validate_A.json").write_text(json.dumps({"A": [said("x")]}))
    with pytest.raises(DataError, match=r"expected a command in a file train_INTENT_full\.json"):
        SlotsTask(str(tmp_path)).load(None)
    (tmp_path / "train_A.json").write_text(json.dumps({"A": [said(("x", "kind"))]}))
    (tmp_path / "validate_A.json").write_text(json.dumps({"A": [said(("x", "other"))]}))
    with pytest.raises(DataError, match="label 'B-other'"):
        SlotsTask(str(tmp_path)).load(None)
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="is no whole zip archive"):
        IntentTask(str(tmp_path / "broken.zip")).load(None)
    for kind in KINDS:
        with pytest.raises(ConfigError, match="vocabulary=2: expected >= 3"):
            kind(vocabulary=2)
        with pytest.raises(ConfigError, match="length=0"):
            kind(length=0)


def test_real_snips(data_dir: Path) -> None:
    intent, slots = IntentTask().load(data_dir), SlotsTask().load(data_dir)
    assert intent.test is not None
    assert (len(intent.pool), len(intent.test)) == (13_784, 700)
    assert (len(intent.classes), len(slots.classes)) == (7, 79)
    assert torch.equal(intent.pool.inputs, slots.pool.inputs)
    assert intent.test.targets.bincount().tolist() == [100] * 7
