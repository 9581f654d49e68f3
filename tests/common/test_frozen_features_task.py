from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import Scenario, dump, parse
from fedstill.common.sources import override, read_table
from fedstill.common.task import TaskData
from fedstill.common.tasks.frozen_features import FrozenFeaturesTask

FEATURES = np.arange(12, dtype=np.float16).reshape(4, 3)
LABELS = np.array([0, 2, 1, 0], dtype=np.uint8)

Play = Callable[..., Any]


def load(folder: Path, arrays: Mapping[str, Any], **options: Any) -> TaskData:
    np.savez(folder / "f.npz", **arrays)
    return FrozenFeaturesTask(source="f.npz", **options).load(folder)


def test_one_part_and_two(tmp_path: Path) -> None:
    arrays = {"features": FEATURES, "labels": LABELS}
    one = load(tmp_path, arrays, test_share=0.0)
    assert one.pool.inputs.tolist() == FEATURES.tolist()
    assert one.pool.targets.tolist() == [0, 2, 1, 0]
    assert one.pool.targets.dtype == torch.int64
    assert one.classes == ("0", "1", "2")
    assert one.test is None
    aside = load(tmp_path, arrays, test_share=0.25)
    assert aside.test is not None
    assert (len(aside.pool), len(aside.test)) == (3, 1)
    more = {"test_features": FEATURES[:1].astype(np.float32), "test_labels": np.array([3])}
    two = load(tmp_path, arrays | more, classes=("a", "b", "c", "d"))
    assert two.test is not None
    assert two.test.inputs.tolist() == [[0, 1, 2]]
    assert two.test.targets.tolist() == [3]
    assert two.classes == ("a", "b", "c", "d")
    assert len(two.pool) == 4


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", FEATURES)
    np.save(tmp_path / "labels.npy", LABELS)
    assert FrozenFeaturesTask(source=str(tmp_path), test_share=0.0).load(None).pool.inputs.shape == (4, 3)


def test_prepare_uses_the_proxy_only(tmp_path: Path) -> None:
    task = FrozenFeaturesTask(source="f.npz")
    inputs = load(tmp_path, {"features": FEATURES, "labels": LABELS}, test_share=0.0).pool.inputs
    # Columns 0, 3, 6, 9 and so on; the proxy's rows 0 and 2 have the mean 3 and the deviation 3 there.
    ready = task.prepare(inputs, inputs[[0, 2]])
    assert ready.dtype == torch.float32
    assert ready.tolist() == [[-1, -1, -1], [0, 0, 0], [1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": FEATURES.astype(np.float64)}, "type float64: expected .* float16 or float32"),
        ({"features": FEATURES[0]}, r"shape \(3,\)"),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, r"shape \(0, 3\)"),
        ({"features": np.asfortranarray(FEATURES)}, "C order"),
        ({"features": np.array([{}], dtype=object)}, "expected"),
        ({"features": np.where(FEATURES == 7, np.inf, FEATURES)}, "row 2: expected finite"),
        ({"labels": LABELS[:3]}, r"labels of shape \(3,\) .* expected one whole number for each of 4 features"),
        ({"labels": LABELS.astype(np.float32)}, "type float32: expected one whole number"),
        ({"labels": LABELS.astype(np.int64) - 1}, "labels from -1 to 1"),
        ({"labels": LABELS.astype(np.int64) << 40}, "expected class positions"),
        ({"test_features": FEATURES}, "expected an array 'test_labels'"),
        ({"test_features": FEATURES[:, :2], "test_labels": LABELS}, "test_features of 2 numbers: expected 3"),
        ({"labels": None}, "with features: expected an array 'labels'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {"features": FEATURES, "labels": LABELS} | changes
    with pytest.raises(DataError, match=message):
        load(tmp_path, {name: array for name, array in arrays.items() if array is not None})


def test_sizes_that_are_declared_and_not_there(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, FEATURES)
    # 2 × 10¹⁶ bytes are declared: they must not be asked of the system.
    lie = stream.getvalue().replace(b"(4, 3), }", b"(9999999999999999, 1), }")
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", lie)
        archive.writestr("labels.npy", stream.getvalue())
    with pytest.raises(DataError, match="expected 19999999999999998 for shape"):
        FrozenFeaturesTask(source="f.npz").load(tmp_path)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", features=FEATURES, labels=LABELS)
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    (tmp_path / "text.npz").write_text("features")
    for name in ("half.npz", "text.npz", "none.npz"):
        with pytest.raises(DataError, match=name):
            FrozenFeaturesTask(source=name).load(tmp_path)
    with pytest.raises(ConfigError, match="test-share"):
        FrozenFeaturesTask(source="whole.npz", test_share=1.0)


def shrunk(changes: Mapping[str, Any] = {}) -> Scenario:
    """The named scenario with few samples and rounds."""
    small = {
        "rounds.count": 2,
        "clients.count": 4,
        "training.epochs": 5,
        "training.batch-size": 16,
        "training.learning-rate": 0.005,
        "tasks.cifar10.private": 120,
        "tasks.cifar10.proxy.samples": 60,
        "tasks.cifar10.partition.alpha": 1.0,
    }
    return parse(override(read_table("cifar10-features"), {**small, **changes}))


def test_the_scenario_on_made_features(tmp_path: Path, play_small: Play) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 10
    features = (rng.normal(size=(10, 32))[labels] * 2 + rng.normal(size=(400, 32))).astype(np.float16)
    np.savez(
        tmp_path / "cifar10_features.npz",
        features=features[:300],
        labels=labels[:300],
        test_features=features[300:],
        test_labels=labels[300:],
    )
    scenario = shrunk()
    assert len(set(scenario.tasks["cifar10"].models)) > 1

    played = play_small(scenario=scenario, data_dir=tmp_path)

    alone, last = (played.records[step]["tasks"]["cifar10"]["clients"] for step in (0, -1))
    for name, measures in last.items():
        assert measures["final.accuracy"] > max(0.6, alone[name]["alone.accuracy"])
    assert parse(dump(scenario)) == scenario


@pytest.mark.slow
def test_real_features(data_dir: Path, play_small: Play) -> None:
    if not (data_dir / "cifar10_features.npz").exists():
        pytest.skip("no cifar10_features.npz in the folder of data sets: benchmarks/extract_features.py writes it")
    played = play_small(scenario=shrunk({"tasks.cifar10.private": 1000}), data_dir=data_dir)
    last = played.records[-1]["tasks"]["cifar10"]["clients"]
    assert all(measures["final.accuracy"] > 0.5 for measures in last.values())
