"""Boxes to maps and back, average precision by hand, Pascal VOC's files, and the model that finds boxes."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.samples import detection as sample
from torch import Tensor

from fedstill.common.data.boxes import Boxes, centre_maps, found_boxes, true_boxes
from fedstill.common.detection_metrics import average_precision
from fedstill.common.errors import ConfigError, DataError, UnsupportedError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, check_model, model_names, parameter_count
from fedstill.common.outputs import output_kind
from fedstill.common.outputs.dense import GEOMETRY
from fedstill.common.scenario import build
from fedstill.common.task import TaskSpec
from fedstill.common.tasks.detection import DetectionTask

Write = Callable[[dict[str, str | bytes]], None]


def tiny(source: str, **options: object) -> DetectionTask:
    task = build(DetectionTask, {"source": source, "width": 32, "height": 24, **options}, "tasks.t")
    assert isinstance(task, DetectionTask)
    return task


def jpeg(width: int = 64, height: int = 48) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(stream, "jpeg")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files of a folder `voc`."""

    def files(contents: dict[str, str | bytes]) -> None:
        for name, content in contents.items():
            path = tmp_path / "voc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return files


# Boxes and maps ------------------------------------------------------------------------------------------------------


def test_maps_of_one_box_by_hand() -> None:
    # 2 × 4 cells; the box is 1 × 2 cells around (2.25, 1): centre in cell (row 1, column 2).
    corners = np.array([[1.75 / 4, 0.0, 2.75 / 4, 1.0]])
    maps = centre_maps(corners, np.array([1]), classes=2, grid=(2, 4))
    assert maps.shape == (2, 4, 6)
    assert maps[1, 2].tolist() == pytest.approx([0, 1, 0, math.log(2), 0.25, 0.0], abs=1e-6)
    # A deviation of 0.54 · 2 / 6 = 0.18 cells: nothing reaches the next cell.
    assert np.count_nonzero(maps.any(-1)) == 1


def test_heat_falls_off_with_the_size_of_a_box() -> None:
    # 10 × 10 cells of 10: a deviation of 0.9; one cell beside the centre e^(−1 / 1.62), diagonally its square.
    maps = centre_maps(np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([0]), classes=1, grid=(10, 10))
    beside = math.exp(-1 / 1.62)
    assert maps[5, 5, 0] == 1
    assert maps[4, 5, 0] == pytest.approx(beside)
    assert maps[4, 4, 0] == pytest.approx(beside**2)
    # From there the centre is a cell further down and right.
    assert maps[4, 4, 1:].tolist() == pytest.approx([math.log(10), math.log(10), 1, 1])
    assert maps[0, 0].tolist() == [0] * 5


def test_boxes_come_back_from_their_maps() -> None:
    corners = np.array([[0.1, 0.2, 0.3, 0.9], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.05, 0.05]])
    labels = np.array([1, 0, 1])
    one = torch.from_numpy(centre_maps(corners, labels, classes=2, grid=(12, 16)))
    none = torch.from_numpy(centre_maps(np.zeros((0, 4)), np.zeros(0, np.int64), classes=2, grid=(12, 16)))
    found = true_boxes(torch.stack([none, one]))
    order = np.lexsort((found.corner[:, 0],))
    assert found.image.tolist() == [1, 1, 1]
    assert found.label[order].tolist() == [1, 1, 0]
    np.testing.assert_allclose(found.corner[order], corners[[2, 0, 1], :2], atol=1e-6)
    np.testing.assert_allclose((found.corner + found.size)[order], corners[[2, 0, 1], 2:], atol=1e-6)


def test_peaks_are_found_the_surest_first() -> None:
    logits = torch.full((1, 3, 5, 5), -9.0)
    logits[..., 1:] = 0  # boxes of one cell, centred at its left upper corner
    logits[0, 1, 1, 0], logits[0, 1, 2, 0], logits[0, 1, 4, 0] = 1.0, 0.0, 2.0  # the second is beside the first
    logits[0, 1, 4, 1] = 99.0  # larger than any image, and finite
    found = found_boxes(logits, limit=2)
    assert found.score.tolist() == pytest.approx([torch.sigmoid(torch.tensor(s)).item() for s in (2.0, 1.0)])
    np.testing.assert_allclose(found.corner[1], [(1 - 0.5) / 5, (1 - 0.5) / 3])
    np.testing.assert_allclose(found.size[1], [1 / 5, 1 / 3])
    assert np.isfinite(found.size).all()


# Average precision ---------------------------------------------------------------------------------------------------


def boxes(*rows: tuple[int, int, float, float]) -> Boxes:
    """Boxes of (image, class, left edge, score), a tenth wide and high."""
    image, label, left, score = (np.array(column) for column in zip(*rows, strict=True))
    corner: NDArray[np.float64] = np.stack([left, np.zeros(len(rows))], 1).astype(np.float64)
    return Boxes(image, label, corner, np.full((len(rows), 2), 0.1), score.astype(np.float64))


def test_average_precision_by_hand() -> None:
    true = boxes((0, 0, 0.0, 1), (0, 0, 0.5, 1), (1, 1, 0.2, 1))
    # Surest first: hit, miss, hit. Precision 1 up to recall ½ (51 of 101 recalls), then 2/3.
    found = boxes((0, 0, 0.0, 0.9), (0, 0, 0.8, 0.8), (0, 0, 0.5, 0.7))
    first, second, third = average_precision(found, true, classes=3)
    assert first == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert second == 0
    assert math.isnan(third)


def test_an_overlap_of_a_half_is_needed_and_a_box_is_found_once() -> None:
    true = boxes((0, 0, 0.0, 1))
    # Moved by a third of the width: (2/3) / (4/3) = ½; by more: less.
    assert average_precision(boxes((0, 0, 0.0333, 1)), true, classes=1) == [1.0]
    assert average_precision(boxes((0, 0, 0.0334, 1)), true, classes=1) == [0.0]
    assert average_precision(boxes((1, 0, 0.0, 1)), true, classes=1) == [0.0]
    # A second box on the same object is wrong, but comes after the whole recall.
    assert average_precision(boxes((0, 0, 0.0, 0.9), (0, 0, 0.0, 0.8)), true, classes=1) == [1.0]
    assert average_precision(boxes((0, 0, 0.3, 0.9), (0, 0, 0.0, 0.8)), true, classes=1) == [0.5]


def test_measuring_says_nothing_of_a_class_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    targets = torch.zeros(1, 4, 4, 6)
    targets[0, 1, 1, 0] = 1
    logits = torch.cat([targets[..., :2] * 20 - 10, targets[..., 2:]], -1)
    task = tiny("voc")
    assert task.measure(logits, targets, ("cell", "other", *GEOMETRY)) == {"map50": 1.0, "ap50-cell": 1.0}
    assert task.measure(logits, targets * 0, ("cell", "other", *GEOMETRY)) == {"map50": 0.0}
    assert capsys.readouterr().out == ""


# Pascal VOC's files --------------------------------------------------------------------------------------------------


def test_a_folder_without_parts(tmp_path: Path, write: Write) -> None:
    # Pixels 1 to 32 of 64 and 13 to 36 of 48; 17 of one pixel is a slip.
    first = sample.annotation([("b", 1, 13, 32, 36), ("a", 17, 17, 17, 17)])
    write({"Annotations/1.xml": first, "JPEGImages/1.jpg": jpeg()})
    write({"Annotations/2.xml": sample.annotation([]), "JPEGImages/2.jpg": jpeg()})
    write({"Annotations/3.xml": sample.annotation([("a", 60, 40, 70, 50)]), "JPEGImages/3.jpg": jpeg()})
    data = tiny("voc", **{"test-share": 0.0}).load(tmp_path)
    assert data.test is None
    assert data.classes == ("a", "b", "width", "height", "dx", "dy")
    assert data.positions == (6, 8)
    assert data.pool.inputs.shape == (3, 3, 24, 32)
    assert data.pool.inputs.dtype == torch.uint8
    assert data.pool.targets.shape == (3, 6, 8, 6)
    found = true_boxes(data.pool.targets)
    assert list(zip(found.image.tolist(), found.label.tolist(), strict=True)) == [(0, 1), (2, 0)]
    np.testing.assert_allclose(found.corner[0], [0, 12 / 48], atol=1e-6)
    np.testing.assert_allclose(found.size[0], [32 / 64, 24 / 48], atol=1e-6)
    # The part of a box beyond the edge does not count.
    np.testing.assert_allclose((found.corner + found.size)[1], [1, 1], atol=1e-6)
    named = tiny("voc", classes=["b", "a", "c"], **{"test-share": 0.4}).load(tmp_path)
    assert named.classes[:3] == ("b", "a", "c")
    assert named.test is not None
    assert (len(named.pool), len(named.test)) == (2, 1)


def test_parts_and_strata_of_a_zip_archive(tmp_path: Path) -> None:
    sample.write(tmp_path)
    data = tiny("discs").load(tmp_path)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (45, 15)
    assert data.classes[:2] == ("blue", "red")
    # Every second picture has a red disc, which is the rarer kind.
    assert data.pool.strata is not None
    assert data.pool.strata.tolist() == [number % 2 for number in range(45)]
    assert len(tiny("discs", parts=["train"]).load(tmp_path).pool) == 30
    with pytest.raises(DataError, match=r"part 'dev' of 'discs': expected one of test, train, val"):
        tiny("discs", parts=["dev"]).load(tmp_path)
    assert len(tiny("discs/discs.zip").load(tmp_path).pool) == 45


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"JPEGImages/1.jpg": jpeg()}, "expected Annotations/NAME.xml"),
        ({"Annotations/1.xml": sample.annotation([])}, r"Annotations/1.xml: expected an image JPEGImages/1.jpg"),
        ({"Annotations/1.xml": "<annotation>", "JPEGImages/1.jpg": jpeg()}, "1.xml: is no whole annotation"),
        ({"Annotations/1.xml": "<annotation/>", "JPEGImages/1.jpg": jpeg()}, "no <size/width>"),
        (
            {"Annotations/1.xml": sample.annotation([("", 1, 1, 9, 9)]), "JPEGImages/1.jpg": jpeg()},
            "no <name>",
        ),
        (
            {"Annotations/1.xml": sample.annotation([], width=0), "JPEGImages/1.jpg": jpeg()},
            "size 0 × 48: expected the photograph's size",
        ),
        (
            {"Annotations/1.xml": sample.annotation([]), "JPEGImages/1.jpg": jpeg()},
            "expected at least one class name",
        ),
        (
            {"Annotations/1.xml": sample.annotation([("a", 1, 1, 9, 9)]), "JPEGImages/1.jpg": b"\xff\xd8 no image"},
            "image JPEGImages/1.jpg: cannot be read",
        ),
        (
            {
                "Annotations/1.xml": sample.annotation([("a", 1, 1, 9, 9)]),
                "JPEGImages/1.jpg": jpeg(),
                "ImageSets/Main/train.txt": "1\n2\n",
            },
            "'2' in part 'train': expected Annotations/2.xml",
        ),
    ],
)
def test_broken_files(tmp_path: Path, write: Write, files: dict[str, str | bytes], message: str) -> None:
    write(files)
    with pytest.raises(DataError, match=message):
        tiny("voc").load(tmp_path)


def test_a_damaged_archive_and_an_unknown_class(tmp_path: Path) -> None:
    sample.write(tmp_path)
    with pytest.raises(DataError, match=r"label 'red' of row 2: expected one of 1 classes"):
        tiny("discs", classes=["blue"]).load(tmp_path)
    archive = tmp_path / "discs" / "discs.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="no whole zip archive"):
        tiny("discs", parts=["val"]).load(tmp_path)


def test_sides_that_maps_do_not_cover() -> None:
    with pytest.raises(ConfigError, match="width=30: expected a multiple of 4"):
        tiny("voc", width=30)


# The model -----------------------------------------------------------------------------------------------------------


def spec(height: int = 24, width: int = 32, classes: int = 2) -> TaskSpec:
    names = (*map(str, range(classes)), *GEOMETRY)
    return TaskSpec("t", "dense", "image", names, (3, height, width), positions=(height // 4, width // 4))


@pytest.mark.parametrize("name", ["centernet-small", "centernet-large"])
def test_maps_of_a_quarter_of_the_sides(name: str) -> None:
    for height, width in ((120, 160), (8, 12), (4, 4)):
        model = build_model(name, spec(height, width), seed=1)
        maps = predict(model, torch.zeros(2, 3, height, width), training=Training())
        assert maps.shape == (2, height // 4, width // 4, 6)
        assert maps.isfinite().all()
    assert model.features(torch.zeros(2, 3, 8, 8)).shape == (2, 16 if name.endswith("small") else 32)
    assert not dict(model.named_buffers())


def test_sizes_and_first_chances() -> None:
    small, large = (build_model(f"centernet-{size}", spec(classes=3), seed=1) for size in ("small", "large"))
    assert (parameter_count(small), parameter_count(large)) == (43_047, 170_055)
    heat = torch.sigmoid(predict(small, torch.zeros(1, 3, 24, 32), training=Training())[..., :3])
    assert 0.02 < float(heat.mean()) < 0.3


def test_bodies_do_not_depend_on_the_classes() -> None:
    bodies = [build_model("centernet-small", spec(classes=classes), seed=1).body.state_dict() for classes in (1, 5)]
    assert all(torch.equal(bodies[0][key], bodies[1][key]) for key in bodies[1])


def test_models_and_tasks_that_do_not_go_together() -> None:
    assert model_names("image", "dense") == ("centernet-small", "centernet-large")
    with pytest.raises(UnsupportedError, match=r"'cnn-small' .* of output kind 'dense'.*such as centernet-small"):
        check_model("cnn-small", spec())
    digits = TaskSpec("digits", "categorical", "image", ("0", "1"), (3, 24, 32))
    with pytest.raises(UnsupportedError, match=r"'centernet-small' .* of output kind 'categorical'.*such as cnn-small"):
        check_model("centernet-small", digits)
    crooked = TaskSpec("t", "dense", "image", ("0", *GEOMETRY), (3, 24, 30), positions=(6, 7))
    with pytest.raises(UnsupportedError, match=r"on images of 24 × 30: expected maps of a 4th"):
        check_model("centernet-small", crooked)


def learnt(task: DetectionTask, folder: Path, epochs: int) -> tuple[dict[str, float], Tensor]:
    """What a small model measures on the test part after some epochs, and its outputs."""
    data = task.load(folder)
    assert data.test is not None
    shape = tuple(data.pool.inputs.shape[1:])
    one = TaskSpec("t", task.output, task.modality, data.classes, shape, positions=data.positions)
    model = build_model("centernet-small", one, seed=1)
    training = Training(batch_size=8, learning_rate=5e-3)
    inputs, test = (task.prepare(part.inputs, data.pool.inputs) for part in (data.pool, data.test))
    fit(model, inputs, (data.pool.targets,), output_kind("dense").loss, training=training, epochs=epochs, seed=1)
    logits = predict(model, test, training=training)
    return task.measure(logits, data.test.targets, data.classes), logits


def test_discs_are_found(tmp_path: Path) -> None:
    sample.write(tmp_path)
    before, _ = learnt(tiny("discs"), tmp_path, 0)
    after, _ = learnt(tiny("discs"), tmp_path, 20)
    assert before["map50"] < 0.2
    assert after["map50"] > 0.7


def test_real_photographs(data_dir: Path) -> None:
    task = DetectionTask(source="bccd")
    data = task.load(data_dir)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (292, 72)
    assert data.classes[:3] == ("Platelets", "RBC", "WBC")
    # Without two boxes of one pixel there are 3,941 and 945; six share a cell with another box's centre.
    assert [len(true_boxes(part.targets).image) for part in (data.pool, data.test)] == [3_936, 944]
    assert data.pool.strata is not None
    assert torch.bincount(data.pool.strata).tolist() == [162, 1, 129]


def test_zip_members_in_any_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("deep/er/Annotations/x.xml", sample.annotation([("a", 1, 1, 30, 30)]))
        archive.writestr("deep/er/JPEGImages/x.jpg", jpeg())
    assert len(tiny("some.zip").load(tmp_path).pool) == 1
