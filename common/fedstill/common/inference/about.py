"""What an endpoint of ours says of a model beyond the protocol: `properties` in its metadata, all of them strings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from fedstill.common import __version__
from fedstill.common.errors import MismatchError
from fedstill.common.task import TaskSpec

CLASSES = "classes"
"""The label space: a JSON list of names in the order of the output's last axis."""

INPUT, LOGITS, PROBABILITIES = "inputs", "logits", "probabilities"
"""Names of our tensors: what a model reads, its raw outputs, and these as soft labels at temperature 1."""


def properties(spec: TaskSpec, *, architecture: str, proxy: str, weights: str, run: str) -> dict[str, str]:
    """What is said of a model.

    Args:
        spec: its task over the classes that it knows.
        architecture: of the model.
        proxy: digest of the proxy set whose statistics prepared the inputs that it was trained with.
        weights: SHA-256 of its weights.
        run: in which it was trained.
    """
    told = {
        "fedstill": __version__,
        "run": run,
        "task": spec.name,
        "output": spec.output,
        "modality": spec.modality,
        CLASSES: json.dumps(list(spec.classes), ensure_ascii=False),
        "architecture": architecture,
        "weights": weights,
        "proxy": proxy,
    }
    if spec.positions:
        told["positions"] = json.dumps(list(spec.positions))
    if spec.vocabulary:
        told["vocabulary"] = str(spec.vocabulary)
    if spec.tokenizer:
        told["tokenizer"] = spec.tokenizer
    return told


def classes_of(told: Mapping[str, str]) -> Sequence[str]:
    """The class names among properties; () if nothing is said of them.

    Raises:
        MismatchError: if they are no list of names.
    """
    if CLASSES not in told:
        return ()
    try:
        names = json.loads(told[CLASSES])
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MismatchError(f"property {CLASSES} = {told[CLASSES][:40]!r}", "expected a JSON list of names")
    return tuple(names)
