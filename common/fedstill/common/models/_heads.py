"""What stands on the states of a text body: one file for all text families, by what the task asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedstill.common.task import TaskSpec

Pool = Callable[[Tensor], Tensor]
"""States (…, L, D) to one vector (…, D)."""

TEXT_OUTPUTS = frozenset({"categorical", "multi-label", "regression", "ranking", "token-level"})
"""What a text body with one of these heads can answer."""


def text_head(
    spec: TaskSpec, width: int, *, pool: Pool, hidden: int = 0, dropout: float = 0.0, context: bool = False
) -> nn.Module:
    """The head for a text task.

    | inputs | output kind | head |
    |---|---|---|
    | (N, L) | token-level | a linear layer at each position, with `context` over the pooled text too |
    | (N, L) | others | the pooled text |
    | (N, 1 + M, L) | ranking | M candidates, each compared with the first text |
    | (N, S, L) | others | the first two texts compared |

    Args:
        spec: the task.
        width: D of the body's states (N, …, L, D).
        pool: makes one vector of a text's states.
        hidden: units of a hidden layer; 0 for none.
        dropout: before the last layer.
        context: the body's states know a few neighbours only, so a position is told about the whole text here.
    """
    classes = len(spec.classes)
    if spec.output == "token-level":
        layers = _layers(2 * width if context else width, classes, hidden=hidden, dropout=dropout)
        return _InContext(pool, layers) if context else layers
    if len(spec.input_shape) == 1:
        return _Pooled(pool, _layers(width, classes, hidden=hidden, dropout=dropout))
    if spec.output == "ranking":
        return _Candidates(pool, width)
    return _Pair(pool, _layers(2 * width, classes, hidden=hidden or width, dropout=dropout))


def max_state(states: Tensor) -> Tensor:
    """Maximum over the positions of (…, L, D) states, padding (zero vectors) included: (…, D)."""
    return states.amax(-2)


def _layers(width: int, outputs: int, *, hidden: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden or width, outputs))


class _Pooled(nn.Module):
    def __init__(self, pool: Pool, layers: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.layers = layers

    def forward(self, states: Tensor) -> Tensor:
        outputs: Tensor = self.layers(self.pool(states))
        return outputs


class _InContext(nn.Module):
    """Each position's state beside the pooled text's."""

    def __init__(self, pool: Pool, layers: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.layers = layers

    def forward(self, states: Tensor) -> Tensor:
        text = self.pool(states).unsqueeze(-2).expand_as(states)
        outputs: Tensor = self.layers(torch.cat([states, text], -1))
        return outputs


class _Pair(nn.Module):
    """Distance and product of two texts' vectors (Tai et al. 2015, eq. 15, https://arxiv.org/abs/1503.00075)."""

    def __init__(self, pool: Pool, layers: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.layers = layers

    def forward(self, states: Tensor) -> Tensor:
        one, other = self.pool(states)[:, :2].unbind(1)
        outputs: Tensor = self.layers(torch.cat([(one - other).abs(), one * other], -1))
        return outputs


class _Candidates(nn.Module):
    """Cosine of the projected first text with each candidate, times a learnt scale."""

    def __init__(self, pool: Pool, width: int) -> None:
        super().__init__()
        self.pool = pool
        self.projection = nn.Linear(width, width, bias=False)
        # Texts that share words have similar vectors before anything is learnt.
        nn.init.eye_(self.projection.weight)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, states: Tensor) -> Tensor:
        vectors = self.pool(states)  # (N, 1 + M, D)
        query = normalize(self.projection(vectors[:, 0]), dim=-1)
        return self.scale * torch.einsum("nd,nmd->nm", query, normalize(vectors[:, 1:], dim=-1))
