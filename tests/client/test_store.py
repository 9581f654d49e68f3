from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedstill.client.store import Store
from fedstill.common.errors import StorageError


def student(number: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), number), "steps": torch.tensor(7)}


def number_of(found: tuple[int, dict[str, torch.Tensor]]) -> tuple[int, float]:
    version, tensors = found
    return version, float(tensors["weight"][0, 0])


def test_an_empty_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.versions() == {}
    assert store.load(5) == (0, {})
    assert not store.folder.exists()


@pytest.mark.parametrize("durable", [True, False])
def test_three_versions_are_kept(tmp_path: Path, durable: bool) -> None:
    store = Store(tmp_path, durable=durable)
    for version in range(1, 6):
        store.save(version, student(version), base=version - 1)
    assert list(store.versions()) == [3, 4, 5]
    assert number_of(store.load(4)) == (4, 4.0)
    assert number_of(store.load(9)) == (5, 5.0)
    assert store.load(2) == (0, {})
    assert store.load(0) == (0, {})


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    tensors = {
        "last": image.contiguous(memory_format=torch.channels_last),
        "turned": weight.T,
        "tied": weight,
        "tied-too": weight,
        "scalar": torch.tensor(3),
        "half": weight.bfloat16(),
        "parameter": torch.nn.Parameter(weight),
    }
    store.save(1, tensors, base=0)
    _, found = store.load(1)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_playing_a_round_again_forgets_the_later_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for version in (1, 2, 3):
        store.save(version, student(version), base=version - 1)
    store.save(2, student(20), base=1)
    assert list(store.versions()) == [1, 2]
    assert number_of(store.load(3)) == (2, 20.0)


def test_versions_that_the_server_never_accepted_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for version in (1, 2):
        store.save(version, student(version), base=version - 1)
    for version in (3, 4, 5, 6):  # too late each time: the server goes on asking for version 2
        store.save(version, student(version), base=2)
        assert list(store.versions()) == [1, 2, version]
    assert number_of(store.load(2)) == (2, 2.0)
    assert number_of(store.load(5)) == (2, 2.0)


def test_the_same_student_has_the_same_digest(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    digest = first.save(1, student(1), base=0)
    assert digest == second.save(1, student(1), base=0) != second.save(2, student(2), base=1)
    assert digest in first.versions()[1].name
    assert first.save(1, student(1), base=0) == digest
    assert len(os.listdir(first.folder)) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_version_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    for version in (1, 2):
        store.save(version, student(version), base=version - 1)
    path = store.versions()[2]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-9]), "empty": b""}[damage])
    assert number_of(store.load(2)) == (1, 1.0)


def test_a_full_disk_leaves_the_older_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    store.save(1, student(1), base=0)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(StorageError, match="make room"):
            store.save(2, student(2), base=1)
    assert number_of(store.load(2)) == (1, 1.0)
    assert len(os.listdir(tmp_path)) == 1


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "student-1.safetensors", ".student-000001-0123456789abcdef.safetensors.tmp"):
        (tmp_path / name).write_bytes(b"mine")
    store = Store(tmp_path)
    for version in range(1, 6):
        store.save(version, student(version), base=version - 1)
    assert {"notes.txt", "student-1.safetensors"} <= set(os.listdir(tmp_path))
    assert list(store.versions()) == [3, 4, 5]
