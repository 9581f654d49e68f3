"""One teacher for all tasks: one encoder for each modality, one head for each task.

It is trained on the consensus of all tasks at once, so that what one task's clients know of the proxy samples shapes
the encoder from which every other task's head reads (hard parameter sharing: Caruana 1997,
https://doi.org/10.1023/A:1007379606734). Its answers cover every proxy sample of the round for every task, also samples
that no client of the task has spoken about. Before it learns, what the tasks say of one sample is brought together:
`fedstill.common.evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from fedstill.common import check
from fedstill.common.augment import agreement
from fedstill.common.errors import UnsupportedError
from fedstill.common.evidence import corrected
from fedstill.common.joint import Part, fit_jointly
from fedstill.common.knowledge import SoftLabels
from fedstill.common.network import Network
from fedstill.common.seeding import derive
from fedstill.common.sides import Server
from fedstill.server.teacher.pretrained import read_weights

_LOG_VARIANCE = "log-variance"


@dataclass(frozen=True, slots=True)
class Multitask:
    """One model with an encoder for each modality and a head for each task learns from the consensus of all tasks.

    Attributes:
        epochs: passes over the round's proxy samples.
        weights: of the tasks' losses: "even", or "uncertainty" to learn them (Kendall et al. 2018).
        evidence: weight of what the other tasks' consensus on the same samples says; 0 to do without.
        path: weights of a pretrained encoder (a safetensors file of the architecture's body); "{modality}" stands for
            the modality; "" for random ones.
    """

    name: ClassVar[str] = "multitask"
    paper: ClassVar[str] = "Kendall et al. 2018, https://arxiv.org/abs/1705.07115"
    has_model: ClassVar[bool] = True

    epochs: int = 5
    weights: Literal["even", "uncertainty"] = "even"
    evidence: float = 0.5
    path: str = ""

    def __post_init__(self) -> None:
        check.at_least(1, teacher_epochs=self.epochs)
        check.at_least(0, teacher_evidence=self.evidence)
        check.one_of(("even", "uncertainty"), teacher_weights=self.weights)

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """Nothing before the first answers: a pretrained encoder has no heads yet.

        Raises:
            DataError: if the file of a pretrained encoder is missing or broken.
            UnsupportedError: if it holds another architecture's weights.
        """
        for group in groups(servers):
            if self.path:
                _load(servers[group[0]], self.path)
            _tie([servers[name] for name in group])
        return {}

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """Learn from all tasks' consensus, then answer for each of them on the round's samples."""
        answers: dict[str, SoftLabels] = {}
        subjects = {name: side.group or name for name, side in servers.items()}
        seed = derive(next(iter(servers.values())).seed, "evidence")
        consensus = corrected(consensus, subjects, weight=self.evidence, seed=seed)
        for group in groups(servers):
            _tie([servers[name] for name in group])
            told = [name for name in group if name in consensus]
            if not told:
                continue
            sides = [servers[name] for name in told]
            learnt = fit_jointly(
                [_part(side, consensus[name]) for name, side in zip(told, sides, strict=True)],
                training=sides[0].training,
                epochs=self.epochs,
                seed=sides[0].seed,
                uncertainty=self.weights == "uncertainty",
            )
            for name, side, log_variance in zip(told, sides, learnt, strict=True):
                side.memory[_LOG_VARIANCE] = torch.tensor(log_variance)
                labels = consensus[name]
                answers[name] = side.soft_labels(temperature=labels.temperature, form=labels.form)
        return answers


def groups(servers: Mapping[str, Server]) -> list[list[str]]:
    """The tasks that share an encoder: the same modality, and bodies of one architecture and size."""
    found: dict[tuple[object, ...], list[str]] = {}
    for name, side in servers.items():
        body = _network(side).body
        layout = tuple((key, tuple(value.shape)) for key, value in body.state_dict().items())
        found.setdefault((side.spec.modality, side.model_name, layout), []).append(name)
    return list(found.values())


def _network(side: Server) -> Network:
    if not isinstance(side.model, Network):
        raise UnsupportedError(
            f"model '{side.model_name}' of task '{side.spec.name}' as a part of a multi-task teacher",
            "expected a fedstill.common.network.Network, of body and head",
            "choose another 'teacher' for the task",
        )
    return side.model


def _tie(sides: Sequence[Server]) -> None:
    """Give all models the first one's body; they have been saved with equal ones."""
    body = _network(sides[0]).body
    for side in sides[1:]:
        _network(side).body = body


def _load(side: Server, path: str) -> None:
    file = Path(path.replace("{modality}", side.spec.modality))
    weights = read_weights(file)
    body: nn.Module = _network(side).body
    own = {name: tuple(value.shape) for name, value in body.state_dict().items()}
    if own != {name: tuple(value.shape) for name, value in weights.items()}:
        raise UnsupportedError(
            f"{file}: {len(weights)} weights",
            f"expected those of the body of '{side.model_name}'",
            "save the body of the architecture that the task's 'teacher' names",
        )
    body.load_state_dict(weights)


def _part(side: Server, labels: SoftLabels) -> Part:
    inputs, targets, loss = side.lesson(labels)
    variance = side.memory.get(_LOG_VARIANCE)
    return Part(
        side.model,
        inputs,
        targets,
        loss,
        side.seed,
        0.0 if variance is None else float(variance),
        agreement(side.spec, side.training, seed=side.seed),
    )
