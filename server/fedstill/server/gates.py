"""What the answers of a round have to look like, task by task, as the method and the server's model say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedstill.common.algorithm import Algorithm, asked, beside, own_weights, parts
from fedstill.common.knowledge import Layout
from fedstill.common.models import build_model
from fedstill.common.sides import ClientInfo
from fedstill.common.task import TaskSpec
from fedstill.server.admission import TaskGate
from fedstill.server.holdings import ServerTask


def task_gate(
    task: ServerTask,
    method: Algorithm,
    clients: Mapping[str, ClientInfo],
    *,
    exchange: str,
    model: str,
    weights: Mapping[str, Tensor],
    samples: int,
) -> TaskGate:
    """The gate of one task in one round.

    Args:
        task: what the server holds of it.
        method: of the run.
        clients: who has the task.
        exchange: what is expected in this round.
        model: name of the server's model.
        weights: of it.
        samples: how many proxy samples the round is about.
    """
    sent = exchange == "parameters"
    several = sent and own_weights(method)
    return TaskGate(
        task.spec,
        exchange,
        task.proxy.digest,
        _layout(weights) if sent else {},
        clients,
        asked=asked(method),
        features=task.features,
        predictions="predictions" in parts(method),
        beside=beside(method, samples) if sent else {},
        model=model if sent else "",
        models={one: _layout_of(one, task.spec) for one in {info.model for info in clients.values()}}
        if several
        else {},
    )


def _layout(weights: Mapping[str, Tensor]) -> Layout:
    return {key: (tuple(value.shape), str(value.numpy().dtype)) for key, value in weights.items()}


def _layout_of(model: str, spec: TaskSpec) -> Layout:
    """Of an architecture, without making its weights."""
    with torch.device("meta"):
        weights = build_model(model, spec, seed=0).state_dict()
    return {
        key: (tuple(value.shape), str(torch.empty(0, dtype=value.dtype).numpy().dtype))
        for key, value in weights.items()
    }
