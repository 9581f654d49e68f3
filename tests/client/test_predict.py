"""`fedstill predict`, with onnxruntime alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.client.card import CARD, file_digest
from fedstill.client.exporting.export import export
from fedstill.client.exporting.subject import Place, Subject, student
from fedstill.client.holdings import simulated
from fedstill.client.predicting.inputs import read_inputs
from fedstill.client.predicting.session import Student, open_student
from fedstill.client.store import Store
from fedstill.common.errors import DataError, FedstillError, UnsupportedError
from fedstill.common.models import build_model
from fedstill.common.scenario import Scenario
from fedstill.common.tasks.tabular import TabularTask
from fedstill.server.folder import begin_folder
from fedstill.simulations.run import simulate

BLOCKED = ("flwr", "grpc", "pydantic", "safetensors", "torch")

_BLOCKING = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv = ["fedstill", *sys.argv[1:]]
from fedstill.simulations.cli import main
main()
"""


@pytest.fixture(scope="module")
def subject(small: Callable[..., Scenario], tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The mlp of client 1 of a run of wines."""
    scenario = small({"rounds.count": 2, "alone": False})
    folder = begin_folder(tmp_path_factory.mktemp("runs") / "wines", scenario, data_dir=None)
    simulate(scenario, folder)
    step, tensors = Store(folder.clients / "client-1").load(3)
    weights = {key.removeprefix("wine.model."): value for key, value in tensors.items() if ".model." in key}
    holding = simulated(scenario, 1, None).tasks["wine"]
    return student(holding, weights, Place("wines", "client-1", step), folder=None)


@pytest.fixture(scope="module")
def exported(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(subject, tmp_path_factory.mktemp("exported") / "wine").folder


@pytest.fixture
def wines(exported: Path) -> Student:
    return open_student(exported)


def raw_wines() -> np.ndarray:
    test = TabularTask(source="wine").load(None).test
    assert test is not None
    rows: np.ndarray = test.inputs.numpy()
    return rows


def labels_of_the_run(subject: Subject) -> list[str]:
    """What the run's model says of the test samples, as the run prepared them."""
    with torch.no_grad():
        return [subject.spec.classes[place] for place in subject.model(subject.checked).argmax(-1).tolist()]


def predicted(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKING, "predict", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def csv_of_wines(student: Student, path: Path) -> Path:
    reader: Any = student.card.reader
    rows = [",".join(map(repr, row)) for row in raw_wines().tolist()]
    path.write_text("\n".join([",".join(reader.names), *rows]) + "\n")
    return path


def test_raw_inputs_get_the_labels_of_the_run_without_torch_and_flower(
    subject: Subject, exported: Path, wines: Student, tmp_path: Path
) -> None:
    wanted = labels_of_the_run(subject)
    assert len(set(wanted)) == 3
    np.save(tmp_path / "raw.npy", raw_wines())
    told = json.loads(predicted(exported, tmp_path / "raw.npy", "--json"))
    assert [one["label"] for one in told] == wanted
    assert [one["input"] for one in told[:2]] == [f"{tmp_path}/raw.npy:1", f"{tmp_path}/raw.npy:2"]
    with torch.no_grad():
        chances = torch.softmax(subject.model(subject.checked).double(), -1).amax(-1)
    assert [one["probability"] for one in told] == pytest.approx(chances.tolist(), abs=1e-6)

    table = predicted(exported, csv_of_wines(wines, tmp_path / "wines.csv"), "--csv")
    head, *rows = table.splitlines()
    assert head == "input,label,probability"
    assert [row.split(",")[1] for row in rows] == wanted
    [line, *_] = predicted(exported, tmp_path / "wines.csv").splitlines()
    assert line.split() == [f"{tmp_path}/wines.csv:1", wanted[0], f"{chances[0]:.4f}"]


def test_prepared_inputs(subject: Subject, wines: Student, tmp_path: Path) -> None:
    np.savez(tmp_path / "ready.npz", inputs=subject.checked.numpy(), more=np.zeros(3))
    names, ready = read_inputs(wines, [tmp_path / "ready.npz"], prepared=True)
    assert len(names) == len(ready)
    assert [one.label for one in wines.answer(ready, prepared=True)] == labels_of_the_run(subject)


def test_the_batch_does_not_matter(wines: Student) -> None:
    raw = raw_wines()
    one = wines.run(wines.prepare(raw), batch=7)
    np.testing.assert_allclose(one, wines.run(wines.prepare(raw)), atol=1e-5)
    np.testing.assert_allclose(one[3:4], wines.run(wines.prepare(raw[3:4])), atol=1e-5)


def test_blocked_packages_are_installed() -> None:
    """Else a test that does without them would prove nothing."""
    done = subprocess.run([sys.executable, "-c", f"import {', '.join(BLOCKED)}"], check=False, capture_output=True)
    assert done.returncode == 0
    blocked = subprocess.run([sys.executable, "-c", _BLOCKING, "list"], check=False, capture_output=True, text=True)
    assert (blocked.returncode, blocked.stdout) == (1, "")
    assert re.fullmatch(r"error: package '\w+': is not installed \(pip install fedstill\)\n", blocked.stderr)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 12)), r"of shape \(2, 12\)"),
        (np.zeros((2, 1)), r"of shape \(2, 1\)"),
        (np.zeros((2, 13, 1)), r"of shape \(2, 13, 1\)"),
        (np.zeros(13), r"of shape \(13,\) and type float64: expected numbers \(N, …\)"),
        (np.zeros((0, 13)), r"of shape \(0, 13\)"),
        (np.full((1, 13), "wine"), "expected numbers"),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_arrays_that_are_no_inputs(
    wines: Student, tmp_path: Path, array: np.ndarray, message: str, *, prepared: bool
) -> None:
    np.save(tmp_path / "array.npy", array)
    with pytest.raises(DataError, match=message):
        wines.answer(read_inputs(wines, [tmp_path / "array.npy"], prepared=prepared)[1], prepared=prepared)


def test_prepared_numbers_that_are_not_finite(wines: Student) -> None:
    with pytest.raises(DataError, match="not finite"):
        wines.answer(np.full((1, 13), np.inf), prepared=True)


def test_files_that_hold_no_array(wines: Student, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((1, 13)), b=np.zeros((1, 13)))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    for name, message in (
        ("two.npz", "with a, b: expected one array, or one called 'inputs'"),
        ("objects.npy", "cannot be read: Object arrays"),
        ("torn.npy", "cannot be read"),
        ("none.npy", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            read_inputs(wines, [tmp_path / name])


def test_files_of_different_kinds(wines: Student, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 13)))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UnsupportedError, match=r"input .*a\.csv: expected \.npy or \.npz files, or CSV files"):
        read_inputs(wines, [tmp_path / "a.npy", tmp_path / "a.csv"])
    np.save(tmp_path / "b.npy", np.zeros((1, 12)))
    with pytest.raises(DataError, match=r"arrays of shapes \(1, 13\) and \(1, 12\)"):
        read_inputs(wines, [tmp_path / "a.npy", tmp_path / "b.npy"])


def test_a_task_that_does_not_say_how_it_prepares(subject: Subject, tmp_path: Path) -> None:
    export(replace(subject, usage=None), tmp_path / "out")
    bare = open_student(tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"the task does not say how \(give them with --prepared\)"):
        bare.answer(raw_wines())
    assert [one.label for one in bare.answer(subject.checked.numpy(), prepared=True)] == labels_of_the_run(subject)


def test_token_ids_outside_the_vocabulary(wines: Student, exported: Path) -> None:
    card = replace(wines.card, input_type="int64", vocabulary=9, input_shape=(4,))
    other = replace(wines, card=card)
    for ids in (np.full((1, 4), 9), np.full((1, 4), -1), np.zeros((1, 4))):
        with pytest.raises(DataError, match="expected whole numbers from 0 to 8"):
            other.run(ids)


def test_a_student_that_onnxruntime_cannot_run(subject: Subject, exported: Path, tmp_path: Path) -> None:
    export(subject, tmp_path / "pt2", form="torch-export")
    with pytest.raises(UnsupportedError, match="of format 'torch-export': expected 'onnx'"):
        open_student(tmp_path / "pt2")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    table = json.loads((exported / CARD).read_text()) | {"files": {"model.onnx": file_digest(broken / "model.onnx")}}
    (broken / CARD).write_text(json.dumps(table))
    with pytest.raises(DataError, match="is no model that onnxruntime can run"):
        open_student(broken)


def test_json_and_csv_at_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedstill.simulations.commands.predict import predict

    with pytest.raises(FedstillError, match="--csv with --json: expected one of them"):
        predict(exported, [Path("x.npy")], as_csv=True, as_json=True)


def test_a_label_space_of_the_clients_own(small: Callable[..., Scenario], tmp_path: Path) -> None:
    """A client that knows two of three wines names those, in its own numbering."""
    changes = {"tasks.wine.label-space": "own", "tasks.wine.partition.kind": "pathological"}
    scenario = small({**changes, "tasks.wine.partition.classes": 2, "tasks.wine.partition.minimum": 1})
    holding = simulated(scenario, 1, None).tasks["wine"]
    assert len(holding.spec.classes) == 2
    weights = build_model(holding.model, holding.spec, seed=5).state_dict()
    found = export(student(holding, weights, Place("", "", 0), folder=None), tmp_path / "out")
    assert found.card.classes == holding.spec.classes
    labels = {one.label for one in open_student(tmp_path / "out").answer(raw_wines())}
    assert labels <= set(holding.spec.classes)
