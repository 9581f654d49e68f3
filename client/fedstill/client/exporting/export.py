"""A trained model with its card in a folder of its own, checked against torch and timed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill.client.card import CARD, Card, file_digest
from fedstill.client.exporting.checks import Agreement, Latency, check, compare, timed
from fedstill.client.exporting.graphs import EXPORTERS, Run, open_graph, write_graph
from fedstill.client.exporting.integers import quantise
from fedstill.client.exporting.subject import Subject
from fedstill.common import __version__
from fedstill.common.compression import weight_bytes
from fedstill.common.errors import ConfigError, RunFolderError, UnsupportedError
from fedstill.common.files import storage_error, write_atomically
from fedstill.common.learning import one_thread
from fedstill.common.models import parameter_count
from fedstill.common.usage import Usage

BATCHES = (1, 32)
"""Samples of a call that is timed."""

_BATCH = 128


@dataclass(frozen=True, slots=True)
class Figures:
    """A model in numbers.

    Attributes:
        bytes: of the weights in torch; of the file, of an exported model.
        latency: by the number of samples of a call, on one thread.
        measures: the task's, on the samples that it was checked with; {} where nobody knows the targets.
    """

    bytes: int
    latency: Mapping[int, Latency]
    measures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        card: what it says.
        agreement: how near its outputs are to the model's.
        checked_with: "test", "own" or "proxy" samples.
        way: of the integers, "static" or "dynamic"; "" for floats.
        torch, exported: both models in numbers.
    """

    folder: Path
    card: Card
    agreement: Agreement
    checked_with: str
    way: str
    torch: Figures
    exported: Figures

    def table(self) -> dict[str, Any]:
        """For programs."""
        return {"folder": str(self.folder), "file": self.card.file, "format": self.card.format, **self.card.measured}


def export(subject: Subject, folder: Path, *, form: str = "onnx", int8: bool = False, way: str = "") -> Exported:
    """Write a model and its card into a new folder; there is none if the check fails.

    Args:
        subject: the model.
        folder: which must not exist, or be empty.
        form: "onnx" or "torch-export".
        int8: weights as 8-bit integers.
        way: of the integers, as in `quantise`.

    Raises:
        ConfigError: for a format that is not known, or a package that is not installed.
        UnsupportedError: if the model cannot be exported so, or the file does not answer as the model does.
        RunFolderError: if something is there already.
        StorageError: if the disk refuses.
    """
    if form not in EXPORTERS:
        raise ConfigError(f"format '{form}'", f"expected one of {', '.join(EXPORTERS)}")
    if int8 and form != "onnx":
        raise UnsupportedError(
            f"int8 with format '{form}'", "torch.export cannot hold torch's packed integer weights", "use --format onnx"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"folder {folder}", "exists already", "name another one with --out, or remove it")
    with one_thread(), tempfile.TemporaryDirectory() as place:
        path = Path(place) / EXPORTERS[form]
        write_graph(subject.model, subject.calibration, path, form=form)
        if int8:
            small, samples = path.with_name("int8.onnx"), subject.calibration.numpy()
            way = quantise(path, small, samples, subject.spec, way=way)
            small.replace(path)
        found = _examined(subject, path, form=form, precision="int8" if int8 else "fp32", way=way if int8 else "")
        card = _keep(path, found.card, subject.usage, folder)
    return replace(found, folder=folder, card=card)


def _examined(subject: Subject, path: Path, *, form: str, precision: str, way: str) -> Exported:
    inputs = subject.checked.numpy()
    ours, theirs = _torch_run(subject), open_graph(path, form=form)
    wanted, found = _answers(ours, inputs), _answers(theirs, inputs)
    agreement = compare(wanted, found, output=subject.spec.output)
    check(agreement, wanted, output=subject.spec.output, precision=precision)
    figures = [
        Figures(size, {batch: _latency(run, inputs, batch) for batch in BATCHES}, _measures(subject, outputs))
        for size, run, outputs in (
            (weight_bytes(subject.model), ours, wanted),
            (path.stat().st_size, theirs, found),
        )
    ]
    before = Exported(
        path.parent, _card(subject, path, form, precision), agreement, subject.checked_with, way, *figures
    )
    return replace(before, card=replace(before.card, measured=_measured(before)))


def _measured(found: Exported) -> dict[str, Any]:
    def figures(one: Figures) -> dict[str, Any]:
        latency = {str(batch): asdict(times) for batch, times in one.latency.items()}
        return {"bytes": one.bytes, "seconds": latency, "measures": dict(one.measures)}

    return {
        "agreement": {**asdict(found.agreement), "checked-with": found.checked_with},
        "integers": found.way,
        "torch": figures(found.torch),
        "exported": figures(found.exported),
    }


def _card(subject: Subject, path: Path, form: str, precision: str) -> Card:
    spec, usage = subject.spec, subject.usage
    return Card(
        task=spec.name,
        kind=subject.task.name,
        output=spec.output,
        modality=spec.modality,
        classes=spec.classes,
        input_shape=spec.input_shape,
        input_type="float32" if subject.calibration.is_floating_point() else "int64",
        vocabulary=spec.vocabulary,
        positions=spec.positions,
        model=subject.model_name,
        parameters=parameter_count(subject.model),
        origin=replace(subject.origin, fedstill=__version__),
        format=form,
        precision=precision,
        file=path.name,
        files={path.name: file_digest(path)},
        preparation=usage.preparation if usage else None,
        reader=usage.reader if usage else None,
        lead=usage.lead if usage else None,
        new_only=bool(usage and usage.new_only),
        scale=usage.scale if usage else (0.0, 1.0),
    )


def _keep(path: Path, card: Card, usage: Usage | None, folder: Path) -> Card:
    """Write everything; the card last, so that a folder with a card is whole."""
    digests = dict(card.files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (usage.files if usage else {}).items():
            write_atomically(folder / name, content)
            digests[name] = file_digest(folder / name)
        shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise storage_error(folder, error) from error
    whole = replace(card, files=digests)
    write_atomically(folder / CARD, whole.text().encode())
    return whole


def _torch_run(subject: Subject) -> Run:
    def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            outputs: NDArray[np.float32] = subject.model(torch.from_numpy(inputs)).numpy()
        return outputs

    return run


def _answers(run: Run, inputs: NDArray[Any]) -> NDArray[np.float32]:
    return np.concatenate([run(inputs[at : at + _BATCH]) for at in range(0, len(inputs), _BATCH)])


def _latency(run: Run, inputs: NDArray[Any], batch: int) -> Latency:
    samples = inputs[np.arange(batch) % len(inputs)]
    return timed(lambda: run(samples))


def _measures(subject: Subject, outputs: NDArray[np.float32]) -> dict[str, float]:
    if subject.targets is None:
        return {}
    return subject.task.measure(torch.from_numpy(outputs), subject.targets, subject.spec.classes)
