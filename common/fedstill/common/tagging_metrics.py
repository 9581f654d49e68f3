"""Measures of tags: pure functions of what was said and what is true.

A measure without anything to find is 0, so that no client reports NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedstill.common.data.bio import OUTSIDE, spans_of
from fedstill.common.labels import Classes
from fedstill.common.outputs import IGNORE


def entity_f1(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> float:
    """F1 of whole spans over all texts (micro), as conlleval counts them: kind, begin and end have to be right.

    Args:
        said: BIO tags of each text.
        true: as many, of the same lengths.
    """
    from seqeval.metrics import f1_score

    if not true:
        return 0.0
    return float(f1_score([list(row) for row in true], [list(row) for row in said], zero_division=0))


def token_f1(labels: Tensor, targets: Tensor, classes: Classes) -> float:
    """F1 of tags other than O over all words (micro).

    Args:
        labels: (N, L) positions in `classes`.
        targets: (N, L), IGNORE where there is no word.
        classes: BIO tags.
    """
    outside = classes.index(OUTSIDE) if OUTSIDE in classes else -1
    said, true = (part[targets != IGNORE] for part in (labels, targets))
    named = int((said != outside).sum() + (true != outside).sum())
    right = int(((said == true) & (true != outside)).sum())
    return 2 * right / named if named else 0.0


def phrase_f1(
    logits: Tensor, targets: Tensor, classes: Classes, *, best: int, longest: int = 6, least: float = 0.1
) -> float:
    """F1 of the most probable phrases of each text, mean over the texts that have any (F1@5 for `best` 5).

    The probability of a phrase is that of its tags, B I … I, and of no I behind it. The likeliest phrases that do not
    overlap are said. Where there is no target nothing is looked for.

    Args:
        logits: (N, L, 3) of O, B and I.
        targets: (N, L), IGNORE where there is no label.
        classes: the tags of one kind.
        best: phrases of a text that are said.
        longest: words of a phrase.
        least: a phrase that is less probable is not said. F1 is highest where that is half of the F1 that can be
            reached (Lipton et al. 2014, https://arxiv.org/abs/1402.1892).
    """
    begin, inside = (classes.index(name) for name in classes if name != OUTSIDE)
    odds = torch.softmax(logits, -1).masked_fill((targets == IGNORE).unsqueeze(-1), 0)
    scores = []
    for text, row in zip(odds, targets.tolist(), strict=True):
        true = {span[1:] for span in spans_of([OUTSIDE if label == IGNORE else classes[label] for label in row])}
        if true:
            said = _likeliest(text[:, begin], text[:, inside], best=best, longest=longest, least=least)
            scores.append(2 * len(said & true) / (len(said) + len(true)))
    return sum(scores) / len(scores) if scores else 0.0


def _likeliest(begin: Tensor, inside: Tensor, *, best: int, longest: int, least: float) -> set[tuple[int, int]]:
    """Begin and end of the likeliest spans that do not overlap, from the probabilities (L,) of tags."""
    candidates = []
    reached, behind = begin, torch.cat([inside, inside.new_zeros(longest)])
    for words in range(1, longest + 1):
        after = behind[words : words + len(begin)]
        odds = reached * (1 - after)
        candidates += [(-float(odds[first]), first, first + words) for first in torch.where(odds >= least)[0].tolist()]
        reached = reached * after
    said: set[tuple[int, int]] = set()
    for _, first, end in sorted(candidates):
        if len(said) < best and all(end <= start or first >= stop for start, stop in said):
            said.add((first, end))
    return said
