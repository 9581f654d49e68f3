"""A sequence of tokens, written one after the other: translations.

Soft labels (N, L, V) are the distributions of each step, along the sequence that their author wrote: its argmax is the
hypothesis, rows after the end are blank. They carry both kinds of sequence knowledge, the hypothesis and the words that
were nearly chosen (Kim & Rush 2016, https://arxiv.org/abs/1606.07947). Steps of different hypotheses have no mean:
of several opinions the one is chosen that agrees most with the others, the minimum Bayes risk decision (Kumar & Byrne
2004, https://aclanthology.org/N04-1022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedstill.common.errors import UnsupportedError
from fedstill.common.outputs import OutputKind, _distributions

PAD, START, END = 0, 1, 2
"""Token ids of every target vocabulary: nothing, the first token of a prefix, the last token of a sequence."""

_LONGEST = 3
"""Hypotheses are compared by runs of one, two and three tokens."""


@dataclass(frozen=True, slots=True)
class Sequence(OutputKind):
    """Tokens one after the other; targets are int64 (N, L), 0 after the end."""

    name: ClassVar[str] = "sequence"
    has_positions: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """Softmax of z / T at each step."""
        return torch.softmax(logits / temperature, dim=-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the tokens of the targets."""
        written = targets != PAD
        return cross_entropy(logits[written], targets[written], reduction="sum") / written.sum().clamp_min(1)

    def divergence(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T² · KL(q ‖ softmax(z / T)), mean over the steps that the teacher wrote."""
        written = soft.sum(-1) > 0
        each = logits.new_zeros(written.shape)
        # A softmax over a vocabulary is the dearest step of all: none is made for nothing.
        each[written] = _distributions.kl(logits[written], soft[written], temperature)
        return _distributions.per_labelled(each, soft)

    def entropy(self, soft: Tensor) -> Tensor:
        """−Σ_c q_c ln q_c, mean over the steps that were written."""
        return _distributions.per_labelled(_distributions.entropy(soft), soft)

    def sharpen(self, soft: Tensor, temperature: float) -> Tensor:
        """Softmax of q / T at each step that was written."""
        return _distributions.sharpen(soft, temperature)

    def restrict(self, soft: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: a sequence without some of its tokens is another one."""
        raise UnsupportedError(
            f"{len(columns)} of {soft.shape[-1]} tokens",
            "expected the whole vocabulary",
            "use one tokenizer everywhere",
        )

    def check(self, soft: Tensor) -> None:
        """Numbers from 0 to 1 that sum to 1, or are all 0, at each step."""
        _distributions.check_distributions(soft, self.name, blank=True)

    def forced(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The labels' tokens, moved one place on, in the last places of the inputs (teacher forcing).

        Args:
            inputs: (N, S + L) int64, source tokens and an empty prefix.
            labels: (N, L) int64 targets, or (N, L, V) soft labels, whose hypothesis is taken.
        """
        tokens = hypotheses(labels) if labels.dim() == 3 else labels
        steps = tokens.shape[1]
        start = tokens.new_full((len(tokens), 1), START)
        return torch.cat([inputs[:, : inputs.shape[1] - steps], start, tokens[:, :-1]], 1)

    def blank(self, soft: Tensor, inputs: Tensor) -> Tensor:
        """Zeros at the steps after the end."""
        return soft * (hypotheses(soft) != PAD).unsqueeze(-1)

    def combine(self, opinions: Several[NDArray[np.float32]], shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each sample the hypothesis that is most like all opinions' (its own included).

        Its distributions are the mean of those who wrote it.

        An opinion counts by its share and by how sure its author was, the geometric mean of its tokens' probabilities:
        the risk is an expectation, and who met a word in training is surer of it. The first one among equals.
        """
        total = np.zeros(opinions[0].shape)
        soft = [torch.from_numpy(opinion) for opinion in opinions]
        written = [hypotheses(one).tolist() for one in soft]
        weights = shares[:, None] * np.stack([_sureness(one) for one in soft])
        for sample in range(len(total)):
            told = [number for number, tokens in enumerate(written) if tokens[sample] and tokens[sample][0] != PAD]
            if told:
                support = _support([written[number][sample] for number in told], weights[told, sample])
                best = written[told[support.index(max(support))]][sample]
                authors = [number for number in told if written[number][sample] == best]
                parts = weights[authors, sample] if weights[authors, sample].any() else np.ones(len(authors))
                for number, part in zip(authors, parts / parts.sum(), strict=True):
                    total[sample] += part * opinions[number][sample]
        return total


def hypotheses(soft: Tensor) -> Tensor:
    """The tokens that soft labels (N, L, V) tell: argmax up to the first END, then PAD: (N, L) int64.

    A blank row ends a sequence too.
    """
    tokens = soft.argmax(-1).masked_fill((soft == 0).all(-1), PAD)
    over = (tokens == END) | (tokens == PAD)
    earlier = over.cumsum(1) - over.long()  # marks before this step: the first END itself belongs to the sequence
    return tokens.masked_fill(earlier > 0, PAD)


def similarity(one: Several[int], other: Several[int]) -> float:
    """Mean F1 of the runs of one, two and three tokens that two sequences share: 1 for equal ones, 0 for no token."""
    return _similarity(_runs(one), _runs(other))


_Runs = list[Counter[tuple[int, ...]]]


def _runs(tokens: Several[int]) -> _Runs:
    words = [token for token in tokens if token != PAD]
    return [
        Counter(tuple(words[place : place + size]) for place in range(len(words) - size + 1))
        for size in range(1, _LONGEST + 1)
    ]


def _similarity(one: _Runs, other: _Runs) -> float:
    scores = [
        2 * (ours & theirs).total() / (ours.total() + theirs.total())
        for ours, theirs in zip(one, other, strict=True)
        if ours or theirs
    ]
    return sum(scores) / len(scores) if scores else 1.0


def _support(tokens: Several[Several[int]], weights: NDArray[np.float64]) -> list[float]:
    """Mean similarity of each sequence to all of them, by weights; rounded, so that equal ones are equal."""
    runs = [_runs(one) for one in tokens]
    sums = (sum(weight * _similarity(one, other) for weight, other in zip(weights, runs, strict=True)) for one in runs)
    return [round(float(one), 12) for one in sums]


def _sureness(soft: Tensor) -> NDArray[np.float64]:
    """Geometric mean of the largest probabilities over the steps that were written: (N,)."""
    largest = soft.double().amax(-1)
    there = largest > 0
    logarithms = largest.clamp_min(1e-12).log() * there
    mean: NDArray[np.float64] = (logarithms.sum(-1) / there.sum(-1).clamp_min(1)).exp().numpy()
    return mean
