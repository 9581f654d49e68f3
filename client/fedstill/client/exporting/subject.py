"""What is exported: a trained model with its task, and samples to check it with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fedstill.client.card import Origin
from fedstill.client.holdings import Holding
from fedstill.common import __version__
from fedstill.common.data.proxy import ProxySet
from fedstill.common.models import build_model
from fedstill.common.task import Examples, Task, TaskSpec
from fedstill.common.usage import TellsUsage, Usage

_SAMPLES = 1000
"""With which an exported model is compared at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A trained model in evaluation mode.

    Attributes:
        model, model_name: the model and its architecture.
        task, spec: what it learnt.
        usage: what its inputs and answers need; None if the task does not say so.
        origin: where it comes from.
        calibration: prepared inputs of the proxy set.
        checked: prepared inputs to check it with.
        targets: of those; None if nobody knows them.
        checked_with: "test", "own" (the client's held-out examples) or "proxy".
    """

    model: nn.Module
    model_name: str
    task: Task
    spec: TaskSpec
    usage: Usage | None
    origin: Origin
    calibration: Tensor
    checked: Tensor
    targets: Tensor | None
    checked_with: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model was found.

    Attributes:
        run: name of the run; "" if it is not known.
        client: whose it is; "" for the run's teacher.
        step: after which step.
    """

    run: str
    client: str
    step: int


def student(holding: Holding, weights: Mapping[str, Tensor], place: Place, *, folder: Path | None) -> Subject:
    """A client's student with its weights; checked with the common test samples, or the client's held-out ones.

    Args:
        holding: the client's task.
        weights: of the model.
        place: where they were found.
        folder: the data folder.
    """
    own = ("own", holding.data.holdout) if len(holding.data.holdout) else ("proxy", None)
    checked_with, examples = ("test", holding.test) if holding.test is not None and len(holding.test) else own
    return subject(
        holding.task,
        holding.spec,
        holding.model,
        weights,
        place,
        proxy=holding.proxy,
        raw=holding.raw,
        examples=examples,
        checked_with=checked_with,
        folder=folder,
    )


def subject(
    task: Task,
    spec: TaskSpec,
    model_name: str,
    weights: Mapping[str, Tensor],
    place: Place,
    *,
    proxy: ProxySet,
    raw: Tensor | None,
    examples: Examples | None,
    checked_with: str,
    folder: Path | None,
) -> Subject:
    """A model with its weights.

    Args:
        task, spec: what it learnt.
        model_name: architecture.
        weights: of the model.
        place: where they were found.
        proxy: public samples.
        raw: the same as they were read; None if they are not at hand, and inputs then have to be prepared.
        examples: to check with; None for the public samples.
        checked_with: what they are.
        folder: the data folder.
    """
    model = build_model(model_name, spec, seed=0)
    model.load_state_dict(dict(weights))
    usage = task.usage(folder, raw) if raw is not None and isinstance(task, TellsUsage) else None
    origin = Origin(
        __version__, place.run, place.client, place.step, weights_digest(weights), proxy.digest, spec.tokenizer
    )
    return Subject(
        model.eval(),
        model_name,
        task,
        spec,
        usage,
        origin,
        proxy.inputs,
        (proxy.inputs if examples is None else examples.inputs)[:_SAMPLES],
        None if examples is None else examples.targets[:_SAMPLES],
        checked_with,
    )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and numbers, hexadecimal; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
