"""What the sides say to each other, as values: an order to a client and its answer. `records` puts them on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.common.cache import take
from fedstill.common.codec import Codec
from fedstill.common.context import Remembered
from fedstill.common.errors import Reason
from fedstill.common.handshake import Schema
from fedstill.common.knowledge import Knowledge, SoftLabels
from fedstill.common.learning import Training

DESCRIBE = "query.describe"
ALONE = "train.alone"
ROUND = "train.round"
FINISH = "train.finish"

NO_SAMPLES: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

Metrics = dict[str, float | list[float]]
"""Measures by name; a list holds one number a class, NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a client works: decided by the server, the same for all.

    Attributes:
        algorithm: name of the method.
        options: its hyper-parameters.
        training: how students are trained.
        codec: how arrays travel.
    """

    algorithm: str
    options: Mapping[str, Any]
    training: Training
    codec: Codec


@dataclass(frozen=True, slots=True, eq=False)
class TaskOrder:
    """One task's part of an order.

    Attributes:
        proxy_digest: of the server's proxy set.
        samples: ids of the proxy samples to answer on.
        knowledge: what the server tells, or None.
        own: what the client told last, as far as both sides remember it; only its digest travels.
        heard: what the client was told last, likewise.
        recalled: ids of samples whose part of the knowledge the client remembers: it does not travel. See
            `algorithm.recalls`.
    """

    proxy_digest: str
    samples: NDArray[np.int64]
    knowledge: Knowledge | None = None
    own: Remembered | None = None
    heard: Remembered | None = None
    recalled: NDArray[np.int64] = field(default_factory=lambda: NO_SAMPLES)


def unheard(task: TaskOrder) -> Knowledge | None:
    """What travels of an order's knowledge: the rows that the client does not remember."""
    if not isinstance(task.knowledge, SoftLabels) or not len(task.recalled):
        return task.knowledge
    return take(task.knowledge, np.flatnonzero(~np.isin(task.knowledge.samples, task.recalled)))


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What the server asks of a client in one round.

    Attributes:
        run: name of the run.
        round: from 1.
        rounds: how many the run has.
        attempt: from 1; a round below quorum is tried again.
        seed: of the run.
        version: of the student that the client is to start from: the round after which it was saved, 0 for a new one.
        method: how to work.
        tasks: by name.
    """

    run: str
    round: int
    rounds: int
    attempt: int
    seed: int
    version: int
    method: Method
    tasks: Mapping[str, TaskOrder]


@dataclass(frozen=True, slots=True, eq=False)
class TaskAnswer:
    """One task's part of an answer.

    Attributes:
        proxy_digest: of the client's proxy set.
        examples: number of private examples.
        knowledge: what the client tells, or None.
        metrics: what it measured.
    """

    proxy_digest: str
    examples: int
    knowledge: Knowledge | None = None
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a client answers.

    Attributes:
        client: its name.
        run, round, attempt: as in the order.
        version: of the student that it started from; another one than ordered if that was lost.
        tasks: by name.
    """

    client: str
    run: str
    round: int
    attempt: int
    version: int
    tasks: Mapping[str, TaskAnswer]


@dataclass(frozen=True, slots=True)
class Question:
    """What the server says of itself when it asks a client to describe itself.

    Attributes:
        software: its version of fedstill.
        tasks: the run's tasks by name; {} from a server that does not say.
    """

    software: str
    tasks: Mapping[str, Schema]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client does not do what it is asked.

    Attributes:
        reason: one word for it.
        detail: what is there, what is expected, the cure.
    """

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class TaskDescription:
    """What a client says of one of its tasks before a run: no word about its data but their number.

    Attributes:
        output, modality, classes, input_shape: the task as the client knows it.
        model: its architecture.
        parameters: number of the model's weights.
        examples: number of private examples.
        proxy_digest: of its proxy set.
        positions, tokenizer: as in `TaskSpec`.
    """

    output: str
    modality: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    model: str
    parameters: int
    examples: int
    proxy_digest: str
    positions: tuple[int, ...] = ()
    tokenizer: str = ""


@dataclass(frozen=True, slots=True)
class Description:
    """What a client says of itself before a run.

    Attributes:
        client: its name, which has to be its own.
        software: its version of fedstill.
        tasks: by name.
    """

    client: str
    software: str
    tasks: Mapping[str, TaskDescription]
