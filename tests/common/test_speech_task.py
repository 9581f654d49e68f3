from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from fedstill.common.errors import ConfigError, DataError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, model_names, parameter_count
from fedstill.common.outputs import output_kind
from fedstill.common.scenario import build
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec
from fedstill.common.tasks.speaker import SpeakerTask
from fedstill.common.tasks.speech import SpeechTask

SAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "samples" / "speech.py"))
DIGITS = tuple(map(str, range(10)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SAMPLE["write"](tmp_path)
    return tmp_path


def speech(**options: Any) -> SpeechTask:
    return SpeechTask(**{**SAMPLE["OPTIONS"], **options})


def speaker(**options: Any) -> SpeakerTask:
    return SpeakerTask(**{**SAMPLE["OPTIONS"], **options})


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_words_by_speaker(folder: Path) -> None:
    data = speech().load(folder)
    assert data.test is not None
    assert data.classes == ("0", "1", "2")
    assert data.pool.inputs.dtype == torch.uint8
    assert data.pool.inputs.shape == (48, 1, 16, 18)  # 2400 samples: a window of 256, and 17 hops of 128 behind it
    assert data.pool.targets.tolist() == [word for word in range(3) for _ in range(16)]
    assert data.pool.groups == (("ann",) * 8 + ("bob",) * 8) * 3
    assert data.test.targets.tolist() == [word for word in range(3) for _ in range(4)]
    assert data.test.groups == ()
    assert speech(classes=("zero", "one", "two")).load(folder).classes == ("zero", "one", "two")


def test_speakers_by_blocks_of_takes(folder: Path) -> None:
    data = speaker(block=3).load(folder)
    assert data.test is not None
    assert data.classes == ("ann", "bob")
    assert data.pool.targets.tolist() == ([0] * 8 + [1] * 8) * 3
    assert data.pool.groups[:8] == ("takes-2-4",) * 3 + ("takes-5-7",) * 3 + ("takes-8-10",) * 2
    assert data.test.targets.tolist() == [0, 0, 1, 1] * 3


@pytest.mark.parametrize("options", [{}, {"unseen": "ann"}, {"test_takes": 4}])
def test_both_tasks_hear_the_same(folder: Path, options: dict[str, Any]) -> None:
    words, names = speech(**options).load(folder), speaker(**options).load(folder)
    assert torch.equal(words.pool.inputs, names.pool.inputs)
    proxy = words.pool.inputs[:10]
    assert torch.equal(speech().prepare(words.pool.inputs, proxy), speaker().prepare(names.pool.inputs, proxy))


def test_unseen_speaker(folder: Path) -> None:
    words, names = speech(unseen="ann").load(folder), speaker(unseen="ann").load(folder)
    assert words.test is not None
    assert set(words.pool.groups) == {"bob"}
    assert (len(words.pool), len(words.test)) == (24, 36)  # bob's 6 first takes and ann's 30
    only = speech(unseen="ann", test_takes=0).load(folder)
    assert only.test is not None
    assert (len(only.pool), len(only.test)) == (30, 30)
    assert names.test is not None
    assert names.classes == ("bob",)
    assert (len(names.pool), len(names.test)) == (24, 6)
    with pytest.raises(DataError, match=r"unseen = 'an': expected a speaker of 'recordings' \(did you mean 'ann'"):
        speech(unseen="an").load(folder)


def test_a_test_part_where_no_take_is_one(folder: Path) -> None:
    data = speech(test_takes=0, test_share=0.25).load(folder)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (45, 15)
    with pytest.raises(DataError, match="test-takes=10 of 'recordings': expected less"):
        speech(test_takes=10).load(folder)


def test_names_of_another_form(folder: Path) -> None:
    place = folder / "commands"
    for number, path in enumerate(sorted((folder / "recordings").iterdir())[::3]):
        word, name, take = path.stem.split("_")
        target = place / f"w{word}" / f"{name}-nohash-{take}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        assert number < 20
    pattern = r"(?P<word>[^/]+)/(?P<speaker>[^/]+)-nohash-(?P<take>\d+)$"
    data = speech(source="commands", pattern=pattern).load(folder)
    assert data.classes == ("w0", "w1", "w2")
    with pytest.raises(DataError, match=r"commands: w0/ann-nohash-0\.wav: expected a name of word, speaker and number"):
        speech(source="commands").load(folder)
    with pytest.raises(ConfigError, match=r"expected a group \(\?P<speaker>…\)"):
        speech(pattern=r"(?P<word>\w+)(?P<take>\d+)")
    with pytest.raises(ConfigError, match="is no regular expression"):
        speech(pattern="(")


def test_damaged_and_missing_recordings(folder: Path) -> None:
    (folder / "recordings" / "0_ann_0.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"recordings: 0_ann_0\.wav: is no uncompressed WAV"):
        speech(seconds=0.2).load(folder)
    with pytest.raises(DataError, match="data 'none'"):
        speech(source="none").load(folder)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected recordings \(their names have to end in \.wav"):
        speech(source="empty").load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mels": 0}, "mels=0: expected >= 1"),
        ({"hop": 0}, "hop=0.0: expected > 0"),
        ({"window": -1}, "window=-1.0: expected > 0"),
        ({"seconds": 0}, "seconds=0.0: expected > 0"),
        ({"test-takes": -1}, "test_takes=-1: expected >= 0"),
        ({"test-share": 1}, "test-share=1.0: expected 0 <= value < 1"),
        ({"block": 0}, "block=0: expected >= 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SpeakerTask, {"source": "x", **options}, "tasks.t")


def test_measures() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert speech().measure(logits, torch.tensor([0, 1]), ("a", "b")) == {
        "accuracy": 0.5,
        "macro-f1": pytest.approx(1 / 3),
    }


# Models --------------------------------------------------------------------------------------------------------------


def model(name: str, *, classes: tuple[str, ...] = DIGITS, mels: int = 32, seed: int = 1) -> Any:
    return build_model(name, TaskSpec("t", "categorical", "speech", classes, (1, mels, 62)), seed=seed)


@pytest.mark.parametrize(
    ("name", "count"),
    [("speechcnn-small", 16_978), ("speechcnn-medium", 65_242), ("speechcnn-large", 1_066_858)],
)
def test_weights(name: str, count: int) -> None:
    assert parameter_count(model(name)) == count
    # Every number of a model is a weight: no statistics of private recordings.
    assert set(model(name).state_dict()) == {key for key, _ in model(name).named_parameters()}


def test_bodies_are_the_same_for_any_task() -> None:
    digits, speakers = model("speechcnn-small"), model("speechcnn-small", classes=("ann", "bob"))
    ours, theirs = digits.body.state_dict(), speakers.body.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", model_names("speech"))
@pytest.mark.parametrize("mels", [32, 13])
def test_padding_changes_no_answer(name: str, mels: int) -> None:
    spectra = torch.randn(5, 1, mels, 21, generator=torch_rng(0, "spectra"))
    network = model(name, mels=mels).eval()
    for frames in (1, 2, 7, 12, 20):
        alone = network(spectra[:1, ..., :frames])
        # Beside longer recordings its batch is longer, too.
        among = torch.cat([pad(spectra[:1, ..., :frames], (0, 21 - frames)), spectra[1:]])
        assert torch.allclose(network(among)[:1], alone, atol=1e-5)
        assert torch.allclose(network(pad(among, (0, 9)))[:1], alone, atol=1e-5)
        assert torch.allclose(network.features(among)[:1], network.features(spectra[:1, ..., :frames]), atol=1e-5)
    assert not torch.allclose(network(spectra[:1, ..., :7]), network(spectra[:1, ..., :12]), atol=1e-3)


def test_a_recording_of_nothing_has_finite_scores() -> None:
    assert predict(model("speechcnn-small"), torch.zeros(2, 1, 32, 9), training=Training()).isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tones_are_learnt(folder: Path, precision: Any) -> None:
    task = speech()
    data = task.load(folder)
    assert data.test is not None
    ready = task.prepare(data.pool.inputs, data.pool.inputs)
    network = model("speechcnn-small", classes=data.classes, mels=16)
    training = Training(batch_size=8, learning_rate=3e-3, precision=precision)
    fit(network, ready, (data.pool.targets,), output_kind("categorical").loss, training=training, epochs=8, seed=1)
    logits = predict(network, task.prepare(data.test.inputs, data.pool.inputs), training=training)
    assert task.measure(logits, data.test.targets, data.classes)["accuracy"] > 0.9


# Real recordings -----------------------------------------------------------------------------------------------------


def test_real_fsdd(data_dir: Path) -> None:
    words, names = SpeechTask("fsdd").load(data_dir), SpeakerTask("fsdd").load(data_dir)
    assert words.test is not None
    assert names.test is not None
    assert words.classes == DIGITS
    assert names.classes == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    assert words.pool.inputs.shape == (2700, 1, 32, 62)
    assert words.pool.targets.bincount().tolist() == [270] * 10
    assert words.test.targets.bincount().tolist() == [30] * 10
    assert names.test.targets.bincount().tolist() == [50] * 6
    assert sorted({names.pool.groups.count(owner) for owner in names.pool.groups}) == [540]
    assert torch.equal(words.pool.inputs, names.pool.inputs)
