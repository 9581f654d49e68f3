"""Every model that is discovered, at a small size, in every format: the file answers as the model does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fedstill.client.card import Origin
from fedstill.client.exporting.export import export
from fedstill.client.exporting.graphs import EXPORTERS, open_graph
from fedstill.client.exporting.subject import Subject
from fedstill.client.predicting.session import open_student
from fedstill.common.labels import Classes
from fedstill.common.models import build_model, model_names
from fedstill.common.outputs.dense import GEOMETRY
from fedstill.common.registry import MODELS
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec

WORDS, LENGTH = 40, 9
CLASSES = ("a", "b", "c")

SPECS = {
    "image": TaskSpec("t", "categorical", "image", CLASSES, (1, 12, 12)),
    "dense": TaskSpec("t", "dense", "image", ("disc", *GEOMETRY), (3, 16, 24), positions=(4, 6)),
    "tabular": TaskSpec("t", "categorical", "tabular", CLASSES, (7,)),
    "multi-label": TaskSpec("t", "multi-label", "tabular", CLASSES, (7,)),
    "speech": TaskSpec("t", "categorical", "speech", CLASSES, (1, 16, 21)),
    "text": TaskSpec("t", "categorical", "text", CLASSES, (LENGTH,), WORDS),
    "tags": TaskSpec("t", "token-level", "text", CLASSES, (LENGTH,), WORDS, (LENGTH,)),
    "pair": TaskSpec("t", "regression", "text", ("score",), (2, LENGTH), WORDS),
    "candidates": TaskSpec("t", "ranking", "text", CLASSES, (4, LENGTH), WORDS),
    "translation": TaskSpec(
        "t", "sequence", "translation", ("[pad]", "[start]", "[end]", "[unk]", "x"), (6,), WORDS, (2,)
    ),
}


def _spec(name: str) -> str:
    modality = min(MODELS.get(name.rpartition("-")[0]).modalities)
    return "dense" if name.startswith("centernet") else modality


EVERY = [(name, _spec(name)) for name in model_names()]
HEADS = [
    ("mlp-small", "tabular"),
    ("mlp-small", "multi-label"),
    ("linear-softmax", "text"),
    *((name, kind) for name in ("bag-small", "textcnn-small", "transformer-small") for kind in ("tags", "pair")),
    *((name, "candidates") for name in ("bag-small", "textcnn-small", "transformer-small")),
]
SMALL = [
    *(("cnn-small", "image"), ("resnet-8", "image"), ("mlp-small", "image"), ("autoencoder-small", "tabular")),
    *(("speechcnn-small", "speech"), ("centernet-small", "dense"), ("seq2seq-small", "translation")),
    *((name, "text") for name in ("linear-softmax", "bag-small", "textcnn-small", "transformer-small")),
]
"""One of each family."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A task that measures nothing."""

    name: ClassVar[str] = "sample"

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        return {}


def inputs(spec: TaskSpec, count: int) -> Tensor:
    rng = torch_rng(0, "inputs")
    if not spec.vocabulary:
        values = torch.randn(count, *spec.input_shape, generator=rng)
        if spec.modality == "speech":
            values[0, ..., 13:] = 0
        return values
    ids = torch.randint(1, spec.vocabulary, (count, *spec.input_shape), generator=rng)
    ids[0, ..., 5:] = 0
    ids[1] = 0
    if spec.modality == "translation":
        ids[:, -spec.positions[0] :] = 0
    return ids


def made(name: str, kind: str) -> Subject:
    spec = SPECS[kind]
    model = build_model(name, spec, seed=1).eval()
    rng = torch_rng(0, "weights")
    for weight in model.parameters():  # what begins at 0 says nothing
        if not weight.any():
            weight.data = torch.randn(weight.shape, generator=rng)
    samples = inputs(spec, 40)
    return Subject(model, name, Sample(), spec, None, Origin("", "", "", 0, "", ""), samples, samples, None, "proxy")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter reads the source of all its operations anew for each model, which takes half of its time."""
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_library))


_library = cache(ONNXRegistry.from_torchlib)


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is timed for a moment only."""
    from fedstill.client.exporting import checks

    monkeypatch.setattr(checks.timed, "__kwdefaults__", {"calls": 1, "most": 0.0})


def answers(model: nn.Module, samples: Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(samples).numpy()
    return found


@pytest.mark.parametrize(("name", "kind"), [*EVERY, *HEADS], ids=lambda one: one)
def test_onnx(name: str, kind: str, tmp_path: Path) -> None:
    subject = made(name, kind)
    export(subject, tmp_path / "out")
    student = open_student(tmp_path / "out")
    for count in (1, 5):
        samples = inputs(subject.spec, 40)[:count]
        np.testing.assert_allclose(student.run(samples.numpy()), answers(subject.model, samples), atol=1e-4)


# ONNX is made of what torch.export makes, so one of each family is enough here.
@pytest.mark.parametrize(("name", "kind"), SMALL, ids=lambda one: one)
def test_torch_export(name: str, kind: str, tmp_path: Path) -> None:
    subject = made(name, kind)
    export(subject, tmp_path / "out", form="torch-export")
    run = open_graph(tmp_path / "out" / EXPORTERS["torch-export"], form="torch-export")
    for count in (1, 5):
        samples = inputs(subject.spec, 40)[:count]
        np.testing.assert_allclose(run(samples.numpy()), answers(subject.model, samples), atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), SMALL, ids=lambda one: one)
def test_onnx_in_8_bit_integers(name: str, kind: str, tmp_path: Path) -> None:
    subject = made(name, kind)
    small = export(subject, tmp_path / "out", int8=True)
    assert small.way in ("static", "dynamic")
    wanted, found = answers(subject.model, subject.checked), open_student(small.folder).run(subject.checked.numpy())
    assert 1e-4 < np.abs(wanted - found).max() < 0.2 * np.abs(wanted).max()


def test_small_ones_are_of_every_family() -> None:
    assert {name.rpartition("-")[0] for name, _ in SMALL} | {"hf", "linear"} == set(MODELS.names())
