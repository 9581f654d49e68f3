"""Small synthetic data for each kind of output, so that everything that is discovered can be driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedstill.client.guard import RELEASE_VARIABLE
from fedstill.common.data.proxy import ProxySet
from fedstill.common.knowledge import PRIVATE
from fedstill.common.labels import Classes
from fedstill.common.learning import Training
from fedstill.common.outputs import IGNORE
from fedstill.common.outputs.dense import GEOMETRY
from fedstill.common.outputs.sequence import END
from fedstill.common.seeding import torch_rng
from fedstill.common.task import Examples, TaskSpec

CLASSES: dict[str, Classes] = {
    "categorical": ("a", "b", "c"),
    "multi-label": ("p", "q"),
    "regression": ("y",),
    "ranking": ("first", "second", "third"),
    "token-level": ("O", "B", "I"),
    "dense": ("cell", *GEOMETRY),
    "sequence": ("[pad]", "[start]", "[end]", "one", "two", "three"),
}

MODELS = {"token-level": "bag-small", "dense": "centernet-small", "sequence": "seq2seq-small"}
"""Of the kinds that a fully connected network cannot answer."""

VOCABULARY = 12


def _brightness(inputs: Tensor) -> Tensor:
    bright = inputs.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)) > 0.5
    return torch.cat([bright.unsqueeze(-1).float(), torch.zeros(*bright.shape, len(GEOMETRY))], -1)


_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "categorical": lambda inputs: inputs[:, :3].argmax(-1),
    "multi-label": lambda inputs: (inputs[:, :2] > 0).float(),
    "ranking": lambda inputs: one_hot(inputs[:, :3].argmax(-1), 3).float(),
    "regression": lambda inputs: inputs[:, :1] * 2 - inputs[:, 1:2],
    "token-level": lambda inputs: (inputs % 3).masked_fill(inputs == 0, IGNORE),
    "dense": _brightness,
    # A word for each word, then the end.
    "sequence": lambda inputs: torch.cat([inputs[:, :2] + END, torch.full((len(inputs), 1), END)], 1),
}
"""Targets of inputs."""


_HAS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "categorical": lambda targets, place: targets == place,
    "multi-label": lambda targets, place: targets[:, place] > 0,
    "ranking": lambda targets, place: targets[:, place] > 0,
    "regression": lambda targets, place: targets[:, 0] > place + 0.5,
    "token-level": lambda targets, place: (targets == place).any(-1),
    "sequence": lambda targets, place: (targets == END + 1 + place).any(-1),
}
"""Whether a class occurs in targets."""


@dataclass(frozen=True)
class Synthetic:
    """Data of one output kind: a rule of four numbers, or of the words of a text.

    Attributes:
        output: the kind.
    """

    output: str

    @property
    def model(self) -> str:
        return MODELS.get(self.output, "mlp-small")

    @property
    def spec(self) -> TaskSpec:
        classes = CLASSES[self.output]
        if self.output == "token-level":
            return TaskSpec("synthetic", self.output, "text", classes, (6,), vocabulary=VOCABULARY, positions=(6,))
        if self.output == "dense":
            return TaskSpec("synthetic", self.output, "image", classes, (1, 8, 8), positions=(2, 2))
        if self.output == "sequence":
            return TaskSpec("synthetic", self.output, "translation", classes, (6,), vocabulary=4, positions=(3,))
        return TaskSpec("synthetic", self.output, "tabular", classes, (4,))

    @property
    def proxy(self) -> ProxySet:
        return ProxySet(self._inputs(24, "proxy"))

    @property
    def training(self) -> Training:
        # Deep networks do not bear what a small one learns fastest with; words are known for sure too soon.
        rate = {"dense": 0.01, "sequence": 0.01, "token-level": 0.02}.get(self.output, 0.05)
        return Training(epochs=3 if rate == 0.01 else 1, batch_size=8, learning_rate=rate)

    def examples(self, count: int, owner: str) -> Examples:
        inputs = self._inputs(count, owner)
        return Examples(inputs, self.targets(inputs))

    def lacking(self, count: int, owner: str) -> Examples:
        """Examples in which one class, which one depends on the owner, does not occur; of numbers, the high ones."""
        if self.output == "dense":
            blank = torch.zeros(count, 1, 8, 8)  # of the only class of objects there is none
            return Examples(blank, self.targets(blank))
        whole = self.examples(40 * count, owner)
        absent = int(owner[-1]) % min(len(self.spec.classes), 3)
        kept = torch.nonzero(~_HAS[self.output](whole.targets, absent)).flatten()[:count]
        if len(kept) < count:
            raise ValueError(f"{owner} has only {len(kept)} examples without class {absent}")
        return Examples(whole.inputs[kept], whole.targets[kept])

    def targets(self, inputs: Tensor) -> Tensor:
        return _RULES[self.output](inputs)

    def logits(self, inputs: Tensor) -> Tensor:
        """Raw outputs of somebody who knows more or less."""
        if self.output == "token-level":
            return one_hot(inputs % 3, 3) * 3.0
        if self.output == "dense":
            truth = self.targets(inputs)
            return torch.cat([truth[..., :1] * 6 - 3, truth[..., 1:]], -1)
        if self.output == "sequence":
            return one_hot(self.targets(inputs), len(self.spec.classes)) * 6.0
        return inputs[:, : len(self.spec.classes)] * 3

    def _inputs(self, count: int, owner: str) -> Tensor:
        rng = torch_rng(0, "inputs", owner)
        if self.output == "token-level":
            words = torch.randint(1, VOCABULARY, (count, 6), generator=rng)
            return words * (torch.arange(6) < torch.randint(2, 7, (count, 1), generator=rng))
        if self.output == "dense":
            where = torch.randint(4, (count,), generator=rng)
            light = one_hot(where, 4).reshape(count, 1, 2, 2).float()
            return light.repeat_interleave(4, 2).repeat_interleave(4, 3)
        if self.output == "sequence":
            words = torch.randint(1, 4, (count, 2), generator=rng)
            return torch.cat([words, torch.zeros(count, 4, dtype=torch.int64)], 1)
        return torch.randn(count, 4, generator=rng)


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients let out what the owner has to allow, so that every method can be played."""
    monkeypatch.setenv(RELEASE_VARIABLE, ",".join(sorted(PRIVATE)))


@pytest.fixture(scope="session")
def synthetic() -> type[Synthetic]:
    return Synthetic
