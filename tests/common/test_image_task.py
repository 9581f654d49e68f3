from __future__ import annotations

import io
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import build
from fedstill.common.tasks.image import ImageTask

WriteIdx = Callable[[Path, NDArray[np.generic]], None]
WriteTar = Callable[[Path, Mapping[str, bytes]], None]
Png = Callable[[NDArray[np.uint8]], bytes]

IMAGES = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


def grey(value: int, side: int = 2) -> NDArray[np.uint8]:
    return np.full((side, side), value, dtype=np.uint8)


@pytest.fixture
def idx_folder(tmp_path: Path, write_idx: WriteIdx) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_idx(folder / "train-images-idx3-ubyte.gz", IMAGES)
    write_idx(folder / "train-labels-idx1-ubyte", LABELS)
    write_idx(folder / "t10k-images-idx3-ubyte", IMAGES[:2] + 100)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", LABELS[:2])
    (folder / "SOURCE.txt").write_text("where it is from")
    return folder


@pytest.fixture
def class_files(png: Png) -> dict[str, bytes]:
    return {
        "set/train/cat/1.png": png(grey(1)),
        "set/train/cat/2.png": png(grey(2)),
        "set/train/ape/1.PNG": png(grey(3)),
        "set/test/cat/9.png": png(grey(9)),
        "set/README.md": b"no image",
    }


def spread(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_digits_need_no_folder() -> None:
    data = ImageTask().load(None)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (1438, 359)
    assert data.classes == tuple("0123456789")
    assert data.pool.inputs.shape == (1438, 1, 8, 8)
    assert data.pool.inputs.dtype == torch.uint8
    assert data.pool.inputs.max() == 16


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = ImageTask(test_share=0).load(None)
    assert data.test is None
    np.testing.assert_array_equal(data.pool.inputs[:, 0].numpy(), bunch.images)
    np.testing.assert_array_equal(data.pool.targets.numpy(), bunch.target)


def test_load_is_kept_and_the_same_everywhere() -> None:
    assert ImageTask().load(None) is ImageTask().load(None)
    few = ImageTask(samples=50, test_share=0).load(None)
    assert len(few.pool) == 50
    assert few.pool.targets[:8].tolist() == ImageTask(samples=50, test_share=0.0).load(Path()).pool.targets[:8].tolist()


def test_prepared_proxy_set_has_mean_0_and_deviation_1() -> None:
    task = ImageTask()
    proxy = task.load(None).pool.inputs[:300]
    ready = task.prepare(proxy, proxy)
    assert ready.dtype == torch.float32
    assert float(ready.mean()) == pytest.approx(0, abs=1e-5)
    assert float(ready.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_idx_folder(idx_folder: Path) -> None:
    data = ImageTask(source="tiny").load(idx_folder.parent)
    assert data.test is not None
    assert data.classes == ("0", "1", "2")
    assert data.pool.inputs.tolist() == IMAGES[:, None].tolist()
    assert data.pool.targets.tolist() == LABELS.tolist()
    assert data.pool.groups == ()
    assert data.test.inputs.flatten().tolist() == [100, 101, 102, 103, 104, 105, 106, 107]
    assert data.test.targets.tolist() == [0, 1]


def test_idx_folder_without_a_test_part(idx_folder: Path) -> None:
    for path in idx_folder.glob("t10k*"):
        path.unlink()
    data = ImageTask(source="tiny", test_share=0.34, classes=("a", "b", "c")).load(idx_folder.parent)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (4, 2)
    together = sorted(data.pool.inputs[:, 0, 0, 0].tolist() + data.test.inputs[:, 0, 0, 0].tolist())
    assert together == [0, 4, 8, 12, 16, 20]
    assert data.classes == ("a", "b", "c")


def test_writers_of_qmnist_label_files(idx_folder: Path, write_idx: WriteIdx) -> None:
    table = np.zeros((8, 8), dtype=np.int32)
    table[:6, 0] = LABELS
    table[:6, 2] = [7, 7, 12, 12, 7, 2034]
    write_idx(idx_folder / "qmnist-train-labels-idx2-int.gz", table)
    data = ImageTask(source=str(idx_folder)).load(None)
    assert data.pool.groups == tuple(f"writer-{n}" for n in ("0007", "0007", "0012", "0012", "0007", "2034"))
    few = ImageTask(source=str(idx_folder), samples=3).load(None).pool
    for image, owner in zip(few.inputs, few.groups, strict=True):
        assert owner == data.pool.groups[int(image[0, 0, 0]) // 4]
    table[3, 0] = 9
    write_idx(idx_folder / "qmnist-train-labels-idx2-int.gz", table)
    with pytest.raises(DataError, match="labels of the images beside it in column 0"):
        ImageTask(source=str(idx_folder), samples=2).load(None)


def test_broken_idx_folders(idx_folder: Path, write_idx: WriteIdx) -> None:
    task = ImageTask(source="tiny")
    write_idx(idx_folder / "train-labels-idx1-ubyte", LABELS[:5])
    with pytest.raises(DataError, match="6 train images with 5 labels"):
        task.load(idx_folder.parent)
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", LABELS)
    with pytest.raises(DataError, match="expected one file of train labels"):
        task.load(idx_folder.parent)
    (idx_folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="label 2: expected 0 to 1"):
        ImageTask(source="tiny", classes=("a", "b")).load(idx_folder.parent)
    assert len(task.load(idx_folder.parent).pool) == 6
    (idx_folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="expected an idx file of train labels"):
        ImageTask(source="tiny", samples=4).load(idx_folder.parent)


@pytest.mark.parametrize("form", ["folder", "a.tar", "a.tar.gz", "a.tar.xz", "only archive in a folder"])
def test_image_files(tmp_path: Path, write_tar: WriteTar, class_files: dict[str, bytes], form: str) -> None:
    source = "a" if "folder" in form else form
    if form == "folder":
        spread(tmp_path / "a", class_files)
    elif form.endswith("folder"):
        (tmp_path / "a").mkdir()
        write_tar(tmp_path / "a" / "b.tar.xz", class_files)
    else:
        write_tar(tmp_path / form, class_files)
    data = ImageTask(source=source).load(tmp_path)
    assert data.test is not None
    assert data.classes == ("ape", "cat")
    assert data.pool.inputs[:, 0, 0, 0].tolist() == [3, 1, 2]
    assert data.pool.inputs.shape == (3, 1, 2, 2)
    assert data.pool.targets.tolist() == [0, 1, 1]
    assert data.test.inputs.flatten().tolist() == [9] * 4
    assert data.test.targets.tolist() == [1]


def test_coloured_images_of_classes_without_parts(tmp_path: Path, png: Png) -> None:
    red = np.zeros((2, 3, 3), dtype=np.uint8)
    red[..., 0] = 200
    spread(tmp_path, {"10/a.png": png(red), "9/b.png": png(np.full((2, 3), 50, dtype=np.uint8))})
    data = ImageTask(source=str(tmp_path), test_share=0).load(None)
    assert data.classes == ("9", "10")
    assert data.pool.inputs.shape == (2, 3, 2, 3)
    assert data.pool.targets.tolist() == [1, 0]
    assert data.pool.inputs[0].amin((1, 2)).tolist() == [200, 0, 0]
    assert data.pool.inputs[0].amax((1, 2)).tolist() == [200, 0, 0]
    assert set(data.pool.inputs[1].flatten().tolist()) == {50}


def test_samples_limits_each_part(tmp_path: Path, png: Png) -> None:
    spread(tmp_path, {f"{part}/c{n % 2}/{n}.png": png(grey(n)) for part in ("train", "test") for n in range(9)})
    data = ImageTask(source=str(tmp_path), samples=4).load(None)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (4, 4)
    assert data.pool.targets.tolist() == [int(image[0, 0, 0]) % 2 for image in data.pool.inputs]


def test_images_of_many_sizes_have_to_be_resized(tmp_path: Path, png: Png) -> None:
    spread(tmp_path, {"a/1.png": png(grey(7)), "b/1.png": png(grey(8, side=5))})
    with pytest.raises(
        DataError, match=r"b/1.png of 5 × 5 pixels: expected 2 × 2 like the first \(set the task's 'side'"
    ):
        ImageTask(source=str(tmp_path)).load(None)
    data = ImageTask(source=str(tmp_path), side=3, test_share=0).load(None)
    assert data.pool.inputs.tolist() == [[[[7] * 3] * 3], [[[8] * 3] * 3]]


def test_class_outside_the_given_ones(tmp_path: Path, class_files: dict[str, bytes]) -> None:
    spread(tmp_path, class_files)
    with pytest.raises(DataError, match="label 'ape' of row 1: expected one of 2 classes"):
        ImageTask(source=str(tmp_path), classes=("cat", "dog")).load(None)
    assert ImageTask(source=str(tmp_path), classes=("cat", "ape")).load(None).pool.targets.tolist() == [1, 0, 0]


def test_damaged_images(tmp_path: Path, png: Png) -> None:
    good = png(grey(5, side=64))
    wide = io.BytesIO()
    Image.fromarray(np.full((2, 2), 60000, dtype=np.uint16)).save(wide, "png")
    for number, content in enumerate([b"", b"no image", good[:-30], wide.getvalue()]):
        folder = tmp_path / str(number)
        spread(folder, {"a/1.png": content})
        with pytest.raises(DataError, match=r"image a/1.png: cannot be read"):
            ImageTask(source=str(folder)).load(None)


def test_damaged_archives(tmp_path: Path, write_tar: WriteTar, class_files: dict[str, bytes]) -> None:
    write_tar(tmp_path / "a.tar", class_files)
    content = (tmp_path / "a.tar").read_bytes()
    damaged = {
        "cut.tar.xz": lzma.compress(content)[:-40],
        "cut.tar": content[:700],
        "short.tar": content[: 3 * 512 + 20],
        "text.tar": b"no archive" * 100,
        "empty.tar": b"",
    }
    for name, part in damaged.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(DataError, match=name):
            ImageTask(source=name).load(tmp_path)


def test_folders_without_what_is_needed(tmp_path: Path, png: Png) -> None:
    with pytest.raises(DataError, match=r"data 'nowhere': expected it at .*nowhere.*--data-dir"):
        ImageTask(source="nowhere").load(tmp_path)
    with pytest.raises(DataError, match="data 'nowhere'"):
        ImageTask(source="nowhere").load(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected images"):
        ImageTask(source="empty").load(tmp_path)
    spread(tmp_path / "flat", {"1.png": png(grey(1))})
    with pytest.raises(DataError, match="expected a folder for each class"):
        ImageTask(source="flat").load(tmp_path)
    spread(tmp_path / "odd", {"test/a/1.png": png(grey(1)), "val/a/1.png": png(grey(1))})
    with pytest.raises(DataError, match="expected a part 'train'"):
        ImageTask(source="odd").load(tmp_path)


def test_options() -> None:
    options = {"source": "x", "classes": ["a", "b"], "samples": 5, "side": 8, "test-share": 0.1}
    assert build(ImageTask, options, "tasks.t") == ImageTask("x", ("a", "b"), 5, 8, 0.1)
    with pytest.raises(ConfigError, match="test-share=1: expected 0 <= value < 1"):
        ImageTask(test_share=1)
    with pytest.raises(ConfigError, match="samples=-1"):
        ImageTask(samples=-1)


def test_measure() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    assert ImageTask().measure(logits, torch.tensor([0, 1, 1, 1]), ("a", "b")) == {"accuracy": 0.75}


def test_real_mnist_with_writers(data_dir: Path) -> None:
    data = ImageTask(source="mnist").load(data_dir)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (60_000, 10_000)
    assert data.pool.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert len(set(data.pool.groups)) == 539
    assert data.pool.targets.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_real_fashion_mnist(data_dir: Path) -> None:
    data = ImageTask(source="fashion_mnist").load(data_dir)
    assert data.test is not None
    assert data.pool.inputs.shape == (60_000, 1, 28, 28)
    assert data.pool.targets.bincount().tolist() == [6000] * 10
    assert data.test.targets.bincount().tolist() == [1000] * 10
    assert data.pool.groups == ()


@pytest.mark.slow
def test_real_cifar10(data_dir: Path) -> None:
    data = ImageTask(source="cifar10_jpeg", samples=500).load(data_dir)
    assert data.test is not None
    assert data.pool.inputs.shape == (500, 3, 32, 32)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert len(data.classes) == 10
    assert int(data.pool.targets.bincount().min()) > 25
