"""`fedstill predict`: an exported student answers, with onnxruntime alone."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.common.errors import ConfigError
from fedstill.simulations.console import AsJson, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedstill.client.predicting.answers import Answer

EXAMPLES = (
    "Examples:  fedstill predict student photo.png  ·  fedstill predict student questions.txt --json  ·  "
    "fedstill predict student rows.npy --csv"
)


def predict(
    exported: Annotated[Path, typer.Argument(metavar="EXPORTED", help="A folder that 'fedstill export' wrote.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT", help="Files of the task's kind (images, WAV, CSV, lines of text), or .npy and .npz."
        ),
    ],
    prepared: Annotated[bool, typer.Option("--prepared", help="Arrays are prepared already.")] = False,
    top: Annotated[int, typer.Option(min=1, help="So many classes with their probabilities, in JSON.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a call.")] = 128,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: input, label, probability.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label inputs with an exported student, and say how sure it is of each."""
    from fedstill.client.predicting.inputs import read_inputs
    from fedstill.client.predicting.session import open_student

    if as_csv and as_json:
        raise ConfigError("--csv with --json", "expected one of them")
    student = open_student(exported)
    names, raw = read_inputs(student, inputs, prepared=prepared)
    found = student.answer(raw, prepared=prepared, batch=batch, top=top)
    if as_json:
        print_json([{"input": name, **one.table()} for name, one in zip(names, found, strict=True)])
    elif as_csv:
        sys.stdout.write(_csv(names, found))
    else:
        for name, one in zip(names, found, strict=True):
            typer.echo("  ".join((name, one.label, *([] if one.probability is None else [f"{one.probability:.4f}"]))))


def _csv(names: Sequence[str], found: Sequence[Answer]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("input", "label", "probability"))
    for name, one in zip(names, found, strict=True):
        rows.writerow((name, one.label, "" if one.probability is None else f"{one.probability:.6f}"))
    return text.getvalue()
