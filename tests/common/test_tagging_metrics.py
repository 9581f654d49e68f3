from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedstill.common.data.bio import spans_of, tag_classes
from fedstill.common.outputs import IGNORE
from fedstill.common.tagging_metrics import entity_f1, phrase_f1, token_f1

KEYS = tag_classes(["key"])
OUT, BEG, INS = range(3)


def test_entities_by_hand() -> None:
    true = [["B-a", "I-a", "O"], ["O", "B-b"]]
    assert entity_f1(true, true) == 1
    # Two said, one of them right, of two: precision ½, recall ½.
    assert entity_f1([["B-a", "I-a", "O"], ["O", "B-a"]], true) == 0.5
    assert entity_f1([["B-a", "O", "O"], ["O", "B-b"]], true) == 0.5
    # Nothing said, nothing true, nothing at all: no warning, no NaN.
    assert entity_f1([["O"] * 3, ["O"] * 2], true) == 0
    assert entity_f1([["B-a"]], [["O"]]) == 0
    assert entity_f1([["O"]], [["O"]]) == 0
    assert entity_f1([], []) == 0


_TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), min_size=4, max_size=4)


@given(st.lists(st.tuples(_TAGS, _TAGS), min_size=1, max_size=4))
def test_seqeval_counts_our_spans(pairs: list[tuple[list[str], list[str]]]) -> None:
    said, true = ({(row, *span) for row, pair in enumerate(pairs) for span in spans_of(pair[side])} for side in (0, 1))
    expected = 2 * len(said & true) / (len(said) + len(true)) if said | true else 0.0
    assert entity_f1([pair[0] for pair in pairs], [pair[1] for pair in pairs]) == pytest.approx(expected)


def test_tokens_by_hand() -> None:
    targets = torch.tensor([[BEG, INS, OUT, IGNORE], [OUT, OUT, BEG, OUT]])
    assert token_f1(targets, targets, KEYS) == 1
    # Said: B, O, I | O, O, B, O: two right of three said and three true.
    said = torch.tensor([[BEG, OUT, INS, BEG], [OUT, OUT, BEG, OUT]])
    assert token_f1(said, targets, KEYS) == pytest.approx(2 / 3)
    assert token_f1(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64), KEYS) == 0


def scores(*odds: tuple[float, float]) -> Tensor:
    """Raw outputs (1, L, 3) from the probabilities of B and I at each place."""
    rows = torch.tensor([[1 - begin - inside, begin, inside] for begin, inside in odds])
    return rows.clamp_min(1e-9).log().unsqueeze(0)


def test_phrases_by_hand() -> None:
    targets = torch.tensor([[BEG, INS, OUT, BEG, OUT]])
    right = scores((1, 0), (0, 1), (0, 0), (1, 0), (0, 0))
    assert phrase_f1(right, targets, KEYS, best=5) == 1
    # With one phrase only: precision 1, recall ½.
    assert phrase_f1(right, targets, KEYS, best=1) == pytest.approx(2 / 3)
    # "0 1" has 0.6 · 0.9, "0" alone 0.6 · 0.1, and "3", below the tenth, is not said.
    assert phrase_f1(scores((0.6, 0), (0, 0.9), (0, 0), (0.09, 0), (0, 0)), targets, KEYS, best=5) == pytest.approx(
        2 / 3
    )
    # The likeliest tag is O everywhere, and still both are found.
    assert phrase_f1(scores((0.4, 0), (0, 0.9), (0, 0), (0.4, 0), (0, 0)), targets, KEYS, best=5) == 1
    # "0 1" has 0.54 and rules out "0" of 0.36 and "1" of 0.4; then "1" has 0.6, "0" 0.54, and they "0 1" of 0.36.
    assert phrase_f1(scores((0.9, 0), (0.4, 0.6), (0, 0), (1, 0), (0, 0)), targets, KEYS, best=5) == 1
    assert phrase_f1(scores((0.9, 0), (0.6, 0.4), (0, 0), (1, 0), (0, 0)), targets, KEYS, best=5) == 0.4


def test_phrases_where_there_is_no_label() -> None:
    targets = torch.tensor([[BEG, IGNORE, OUT, IGNORE]])
    everywhere = scores((1, 0), (1, 0), (0, 0), (1, 0))
    assert phrase_f1(everywhere, targets, KEYS, best=5) == 1
    # A text without a phrase counts nothing, whatever is said of it.
    both = torch.tensor([[BEG, IGNORE, OUT, IGNORE], [OUT, OUT, OUT, OUT]])
    assert phrase_f1(torch.cat([everywhere, everywhere]), both, KEYS, best=5) == 1
    assert phrase_f1(everywhere, both[1:], KEYS, best=5) == 0
    assert phrase_f1(torch.zeros(0, 4, 3), torch.zeros(0, 4, dtype=torch.int64), KEYS, best=5) == 0


def test_longest_phrase() -> None:
    targets = torch.tensor([[BEG, INS, INS, OUT]])
    right = scores((1, 0), (0, 1), (0, 1), (0, 0))
    assert phrase_f1(right, targets, KEYS, best=5, longest=3) == 1
    assert phrase_f1(right, targets, KEYS, best=5, longest=2) == 0
