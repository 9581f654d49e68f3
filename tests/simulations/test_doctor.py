from __future__ import annotations

import os
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from fedstill.client.node import STORE_VARIABLE
from fedstill.common.checkup import Check
from fedstill.simulations.doctor import examine

Usage = namedtuple("Usage", "total used free")


def find(what: str, data_dir: Path | None = None) -> Check:
    (check,) = [check for check in examine(data_dir) if check.what == what]
    return check


def test_every_fault_has_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")

    for check in examine(tmp_path / "nowhere"):
        assert check.state in ("right", "note", "wrong")
        assert check.found
        assert (check.state == "right") or check.cure
        assert check.table() == {"what": check.what, "state": check.state, "found": check.found, "cure": check.cure}


def test_packages_are_compared_with_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": "1.0", "scikit-learn": "", "ray": "", "transformers": ""}

    def version(name: str) -> str:
        if there.get(name) == "":
            raise PackageNotFoundError(name)
        return there.get(name, "999")

    monkeypatch.setattr("fedstill.common.checkup.version", version)

    torch, sklearn, ray, flwr = find("torch"), find("scikit-learn"), find("ray"), find("flwr")

    assert (torch.state, torch.found) == ("wrong", "1.0, expected >=2.6")
    assert torch.cure == "pip install 'torch>=2.6'"
    assert (sklearn.state, sklearn.found) == ("note", "not installed; needed for simulation and report")
    assert sklearn.cure == "pip install 'fedstill[simulations]'"
    assert (ray.state, ray.found) == ("note", "not installed; needed for 'flwr run .'")
    assert flwr.state == "wrong"
    # Of an extra that not everybody has nothing is wrong.
    other = find("transformers")
    assert (other.state, other.found) == ("note", "not installed; needed for what the extra 'hf' is for")


def test_the_data_folder(tmp_path: Path) -> None:
    assert find("data folder").state == "note"
    assert find("data folder", tmp_path / "nowhere").state == "wrong"
    assert find("data folder", tmp_path).found == f"{tmp_path} is empty"
    (tmp_path / "mnist").mkdir()
    assert (find("data folder", tmp_path).state, find("data folder", tmp_path).found) == ("right", f"{tmp_path}: mnist")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("FLWR_DISABLE_UPDATE_CHECK", "1"),
        ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
    ],
)
def test_flowers_settings(monkeypatch: pytest.MonkeyPatch, name: str, good: str) -> None:
    monkeypatch.setenv(name, good)
    assert find(name).state == "right"
    monkeypatch.delenv(name)
    assert (find(name).state, find(name).cure) == ("note", f"export {name}={good}")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert find("threads").state == "right"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert (find("threads").state, find("threads").cure) == ("note", "export OMP_NUM_THREADS=1")


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.simulations.doctor.shutil.disk_usage", lambda _: Usage(10**12, 10**12, 10**8))
    assert (find("disk").state, find("disk").found) == ("wrong", "0.1 GB free here")


def test_the_student_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "not" / "yet"))
    assert find("student store").state == "right"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert find("student store").state == "wrong"
