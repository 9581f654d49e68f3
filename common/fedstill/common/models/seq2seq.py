"""A recurrent encoder reads a sentence, a recurrent decoder with attention writes another.

Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473, with the dot-product attention after the recurrent layer of
Luong et al. 2015, https://arxiv.org/abs/1508.04025 (without input feeding: all steps of a known sequence are computed
at once), and one matrix for the embeddings and the output layer (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedstill.common.errors import UnsupportedError
from fedstill.common.network import Network, exporting
from fedstill.common.outputs.sequence import END, PAD, START
from fedstill.common.task import TaskSpec

_WIDTHS = {"small": 128, "large": 256}
"""Numbers of an embedding and of a state."""

_DROPOUT = 0.2


class Seq2Seq:
    """A recurrent encoder and a recurrent decoder with attention."""

    name: ClassVar[str] = "seq2seq"
    paper: ClassVar[str] = "Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473"
    modalities: ClassVar[frozenset[str]] = frozenset({"translation"})
    outputs: ClassVar[frozenset[str]] = frozenset({"sequence"})
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "small": "embeddings and states of 128 numbers, one layer in each direction",
            "large": "embeddings and states of 256 numbers, one layer in each direction",
        }
    )

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model; its body, the encoder, is the same for every language that it is translated to."""
        if spec.vocabulary < 2 or len(spec.input_shape) != 1 or not 0 < spec.positions[0] < spec.input_shape[0]:
            raise UnsupportedError(
                f"task '{spec.name}' with inputs {spec.input_shape} and {spec.positions} steps",
                "expected token ids of a sentence and then of its translation",
            )
        width = _WIDTHS[size]
        return Translator(_Encoder(spec.vocabulary, width), _Decoder(len(spec.classes), width), steps=spec.positions[0])


class Translator(Network):
    """Body and head, of which the head reads what was written so far.

    With the translation in the last places of the inputs (teacher forcing) all steps are computed at once. With
    nothing there a model in evaluation mode writes by itself, at each step the likeliest token.
    """

    def __init__(self, body: nn.Module, head: nn.Module, *, steps: int) -> None:
        super().__init__(body, head)
        self.steps = steps

    def forward(self, inputs: Tensor) -> Tensor:
        """Raw outputs of each step: (N, steps, V)."""
        outputs: Tensor = self.head(self.body(inputs[:, : -self.steps]), inputs[:, -self.steps :])
        return outputs

    def features(self, inputs: Tensor) -> Tensor:
        """One vector for each sentence that is translated: (N, D)."""
        return super().features(inputs[:, : -self.steps])


class _Encoder(nn.Module):
    """Token ids (N, read) to states (N, read, D); zeros at padding."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.dropout = nn.Dropout(_DROPOUT)
        self.forth = nn.GRU(width, width // 2, batch_first=True)
        self.back = nn.GRU(width, width // 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != PAD).unsqueeze(-1)
        words = self.dropout(self.embedding(tokens))
        # Turned round within its own length, a sentence is read backwards without its padding.
        read = tokens.shape[1]
        places = (there.squeeze(-1).sum(1, keepdim=True) - 1 - torch.arange(read)) % read
        turned = places.unsqueeze(-1).expand_as(words)
        back = self.back(words.gather(1, turned))[0]
        states = torch.cat([self.forth(words)[0], back.gather(1, turned[..., : back.shape[-1]])], -1)
        return states * there


class _Decoder(nn.Module):
    """States (N, read, D) and what was written (N, L) to raw outputs (N, L, V); zeros after a known end."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)  # it is the output layer too
        self.dropout = nn.Dropout(_DROPOUT)
        self.begin = nn.Linear(width, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.join = nn.Linear(2 * width, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, written: Tensor) -> Tensor:
        there = (states != 0).any(-1)
        mean = states.sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        hidden = torch.tanh(self.begin(mean)).unsqueeze(0)
        # An exported graph has one way through it: it writes.
        if not exporting() and bool((written[:, 0] != PAD).all()):
            steps = (written != PAD) & (written != END)
            joined = self._step(states, there, written, hidden)[0][steps]
            outputs = joined.new_zeros(*steps.shape, len(self.bias))
            outputs[steps] = self._scores(joined)
            return outputs
        if self.training:
            raise UnsupportedError(
                "a translation to learn that is not in the inputs", "expected it there", "see OutputKind.forced"
            )
        return self._write(states, there, hidden, steps=written.shape[1])

    def _write(self, states: Tensor, there: Tensor, hidden: Tensor, *, steps: int) -> Tensor:
        token = torch.full((states.shape[0], 1), START)
        rows = []
        for _ in range(steps):
            joined, hidden = self._step(states, there, token, hidden)
            rows.append(self._scores(joined))
            token = rows[-1].argmax(-1)
        return torch.cat(rows, 1)

    def _step(self, states: Tensor, there: Tensor, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """States (N, L, D) after each of the tokens (N, L), and the last hidden state."""
        own, hidden = self.recurrent(self.dropout(self.embedding(tokens)), hidden)
        likeness = own @ states.transpose(1, 2)  # (N, L, read)
        # A large negative number, for a sentence without a token must not become NaN.
        share = torch.softmax(likeness.masked_fill(~there.unsqueeze(1), -1e4), -1)
        return torch.tanh(self.join(torch.cat([own, share @ states], -1))), hidden

    def _scores(self, joined: Tensor) -> Tensor:
        return linear(self.dropout(joined), self.embedding.weight, self.bias)
