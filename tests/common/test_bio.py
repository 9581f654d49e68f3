from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.data.bio import is_tag, spans_of, tag_classes, tag_rows, tag_targets, tags_of
from fedstill.common.errors import DataError
from fedstill.common.outputs import IGNORE


def test_spans_by_hand() -> None:
    assert spans_of([]) == []
    assert spans_of(["O", "B-a", "I-a", "B-a", "O"]) == [("a", 1, 3), ("a", 3, 4)]
    # An I that goes on with nothing begins a span, as does one of another kind.
    assert spans_of(["I-a", "I-a", "I-b", "O", "I-b"]) == [("a", 0, 2), ("b", 2, 3), ("b", 4, 5)]
    assert spans_of(["B-creative-work"]) == [("creative-work", 0, 1)]


def test_tags_by_hand() -> None:
    assert tags_of([("a", 1, 3), ("b", 3, 4)], 5) == ["O", "B-a", "I-a", "B-b", "O"]
    assert tags_of([("a", 1, 4)], 2) == ["O", "B-a"]
    assert tag_classes(["a", "b"]) == ("O", "B-a", "I-a", "B-b", "I-b")
    assert [is_tag(name) for name in ("O", "B-a", "I-a", "B-", "o", "PlayMusic", "E-a")] == [True] * 3 + [False] * 4


@given(st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=12))
def test_there_and_back(tags: list[str]) -> None:
    spans = spans_of(tags)
    written = tags_of(spans, len(tags))
    assert spans_of(written) == spans
    assert [tag == "O" for tag in written] == [tag == "O" for tag in tags]


def test_wrong_tags() -> None:
    with pytest.raises(DataError, match="tag 'S-a': expected O, B-KIND or I-KIND"):
        spans_of(["O", "S-a"])
    with pytest.raises(DataError, match="a twice"):
        tag_classes(["a", "a"])
    with pytest.raises(DataError, match=r"x\.conll: label 'B-b' of row 2"):
        tag_targets([["O", "B-b"]], tag_classes(["a"]), length=3, where="x.conll")


def test_targets_and_rows() -> None:
    classes = tag_classes(["a"])
    targets = tag_targets([["B-a"], ["O", "B-a", "I-a", "O"]], classes, length=3, where="x")
    assert targets.tolist() == [[1, IGNORE, IGNORE], [0, 1, 2]]
    assert targets.dtype == torch.int64
    labels = torch.tensor([[2, 2, 2], [1, 0, 0]])
    assert tag_rows(labels, targets, classes) == [["I-a"], ["B-a", "O", "O"]]
    assert tag_targets([], classes, length=3, where="x").shape == (0, 3)
