from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from fedstill.common.errors import KnowledgeError, UnsupportedError
from fedstill.common.outputs import output_kind
from fedstill.common.outputs.sequence import END, PAD, START, Sequence, hypotheses, similarity

KIND = Sequence()
LN2 = math.log(2)

tokens = st.lists(st.integers(3, 6), max_size=6)


def told(*rows: list[int], width: int = 8, sure: float = 1.0) -> Tensor:
    """Soft labels that tell these tokens; 0 is a blank row, and what is left of each probability goes to token 7."""
    labels = one_hot(torch.tensor(rows), width).float() * sure
    labels[..., 7] += 1 - sure
    return labels * (torch.tensor(rows) != PAD).unsqueeze(-1)


def test_it_is_found_by_its_name() -> None:
    assert isinstance(output_kind("sequence"), Sequence)


def test_hypotheses_end_with_the_first_end() -> None:
    assert hypotheses(told([3, END, 4, 5], [3, 4, 5, 6], [3, PAD, 4, 5])).tolist() == [
        [3, END, PAD, PAD],
        [3, 4, 5, 6],
        [3, PAD, PAD, PAD],
    ]
    # Raw outputs tell it too, though they may be below 0.
    assert hypotheses(-torch.tensor([[[3.0, 3, 3, 1], [3, 3, 1, 3], [3, 3, 3, 1]]])).tolist() == [[3, END, PAD]]


def test_loss_is_that_of_the_tokens() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 2] = torch.tensor([9.0, 0, 0, 0])  # after the end: whatever it says
    logits[0, 0, 3] = math.log(3)  # 3 / (3 + 1 + 1 + 1)
    targets = torch.tensor([[3, END, PAD], [3, 3, END]])
    assert KIND.loss(logits, targets).item() == pytest.approx((LN2 + 4 * math.log(4)) / 5)
    assert KIND.loss(logits, torch.zeros(2, 3, dtype=torch.int64)).item() == 0


def test_divergence_and_entropy_count_written_steps_alone() -> None:
    soft = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    logits = torch.zeros(2, 3, 2)
    # T² · mean(0, ln 2) at the first sample; the second has no label.
    assert KIND.divergence(logits, soft, 2.0).tolist() == pytest.approx([4 * LN2 / 2, 0])
    assert KIND.entropy(soft).tolist() == pytest.approx([LN2 / 2, 0])
    assert torch.equal(KIND.divergence(logits * 3, KIND.soften(logits * 3, 1.0), 1.0), torch.zeros(2))


def test_sharpened_labels_stay_blank_after_the_end() -> None:
    sharp = KIND.sharpen(torch.tensor([[[0.75, 0.25], [0.0, 0.0]]]), 0.5)
    assert sharp[0, 0].tolist() == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert sharp[0, 1].tolist() == [0, 0]


def test_blank_after_the_end() -> None:
    soft = told([3, END, 4], [3, 4, 5], sure=0.75)
    blanked = KIND.blank(soft, torch.zeros(2, 9, dtype=torch.int64))
    assert torch.equal(blanked[0, :2], soft[0, :2])
    assert blanked[0, 2].sum() == 0
    assert torch.equal(blanked[1], soft[1])


def test_forced_inputs_hold_the_target_one_place_on() -> None:
    inputs = torch.tensor([[8, 9, 0, 0, 0], [8, 0, 0, 0, 0]])
    targets = torch.tensor([[3, 4, END], [5, END, PAD]])
    wanted = [[8, 9, START, 3, 4], [8, 0, START, 5, END]]
    assert KIND.forced(inputs, targets).tolist() == wanted
    assert KIND.forced(inputs, told([3, 4, END], [5, END, PAD], sure=0.75)).tolist() == wanted
    assert inputs[:, 2:].sum() == 0


def test_similarity_by_hand() -> None:
    # One token: 2 · 2 / (3 + 3); two: 2 · 1 / (2 + 2); three: 0.
    assert similarity([3, 4, 5], [3, 4, 6]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert similarity([3, 4, PAD, PAD], [3, 4]) == 1
    # Runs of two and three that neither has do not count; a token counts as often as both have it.
    assert similarity([3], [3]) == 1
    assert similarity([3, 3], [3]) == pytest.approx((2 / 3 + 0) / 2)
    assert similarity([], []) == 1
    assert similarity([], [3]) == 0


@given(tokens, tokens)
def test_similarity_is_symmetric_and_between_0_and_1(one: list[int], other: list[int]) -> None:
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, one) == 1


def combine(*opinions: Tensor, shares: list[float]) -> Tensor:
    return torch.from_numpy(KIND.combine([opinion.numpy() for opinion in opinions], np.array(shares)))


def test_the_chosen_opinion_is_the_one_most_like_the_others() -> None:
    first = told([3, 4, 5, END], [6, END, PAD, PAD], sure=0.75)
    second = told([3, 4, 6, END], [3, 4, END, PAD], sure=0.75)
    third = told([3, 4, 6, 5], [3, 5, END, PAD], sure=0.75)
    chosen = combine(first, second, third, shares=[1, 1, 1])
    assert torch.equal(chosen.float(), second)
    # Whose word weighs most decides alone.
    assert torch.equal(combine(first, second, third, shares=[8, 1, 1]).float(), first)
    # An opinion without weight is no ground for another.
    assert torch.equal(combine(first, second, third, shares=[1, 0, 0]).float(), first)


def test_who_is_surer_counts_for_more() -> None:
    doubtful, sure = told([3, 4, END], sure=0.75), told([5, 6, END], sure=0.875)
    assert torch.equal(combine(doubtful, sure, shares=[1, 1]).float(), sure)
    # 8 · 0.75 against 7 · 0.875: 6 against 6.125, and then the other way round.
    assert torch.equal(combine(doubtful, sure, shares=[8, 7]).float(), sure)
    assert torch.equal(combine(doubtful, sure, shares=[9, 7]).float(), doubtful)
    # Two that are alike outweigh one that is surer than each of them.
    assert torch.equal(combine(doubtful, sure, doubtful, shares=[1, 1, 1]).float(), doubtful)


def test_the_first_of_equals_is_chosen() -> None:
    one, other = told([3, 4, END], sure=0.75), told([5, 6, END], sure=0.75)
    assert torch.equal(combine(one, other, shares=[1, 1]).float(), one)
    assert torch.equal(combine(other, one, shares=[1, 1]).float(), other)


def test_who_has_no_opinion_is_not_asked() -> None:
    blank = torch.zeros(2, 3, 8)
    known = told([3, 4, END], [PAD, PAD, PAD])
    chosen = combine(blank, known, blank, shares=[5, 1, 5])
    assert torch.equal(chosen.float(), known)


def test_values_that_are_no_soft_labels() -> None:
    KIND.check(told([3, END, PAD], sure=0.75))
    with pytest.raises(KnowledgeError, match=r"miss a sum of 1 by 0\.5"):
        KIND.check(told([3, END]) * 0.5)
    with pytest.raises(KnowledgeError, match="non-finite sequence soft labels"):
        KIND.check(told([3, END]) * math.nan)
    with pytest.raises(UnsupportedError, match="2 of 8 tokens: expected the whole vocabulary"):
        KIND.restrict(told([3, END]), torch.tensor([0, 1]))
