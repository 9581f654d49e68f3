from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedstill.common.ranking_metrics import auc, hit_rate, ndcg, pearson, ranks, reciprocal_rank, spearman
from fedstill.common.seeding import torch_rng


def test_ranks_of_equal_values_are_shared() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    assert ranks(torch.tensor([])).tolist() == []


def test_correlations_by_hand() -> None:
    values, others = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    assert pearson(values, others) == pytest.approx(0.5)  # (1 + 0 + 0) / (√2 · √2)
    assert pearson(values, values.exp()) < 1
    assert spearman(values, values.exp()) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert spearman(values, torch.ones(3)) == 0
    assert spearman(values[:0], values[:0]) == 0


def test_area_under_the_curve_by_hand() -> None:
    # Log-odds −1, 1, 0 and 2 with labels 0, 0, 1, 1: three of four pairs are in order.
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-1.0, 1.0]])
    targets = torch.tensor([0, 0, 1, 1])
    assert auc(logits, targets) == 0.75
    assert auc(torch.zeros(4, 2), targets) == 0.5
    assert auc(logits, torch.zeros(4, dtype=torch.int64)) == 0.5
    assert auc(logits[:0], targets[:0]) == 0.5
    # Probabilities beyond float32 still keep their order.
    assert auc(torch.tensor([[0.0, 60.0], [0.0, 50.0]]), torch.tensor([1, 0])) == 1


def test_ndcg_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    # Order 1, 2, 0 with gains 0, 1, 2: (1/log₂3 + 2/2) / (2 + 1/log₂3).
    assert ndcg(scores, torch.tensor([[2.0, 0.0, 1.0]]), top=10) == pytest.approx(0.6199062)
    assert ndcg(scores, torch.tensor([[2.0, 0.0, 1.0]]), top=1) == 0
    assert ndcg(scores, torch.tensor([[0.0, 3.0, 0.0]]), top=10) == 1
    # The best one does not take part.
    assert ndcg(scores, torch.tensor([[0.0, -1.0, 1.0]]), top=1) == 1
    # A sample without a relevant candidate does not count.
    both = scores.expand(2, 3)
    assert ndcg(both, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]), top=10) == 1
    assert ndcg(scores, torch.zeros(1, 3), top=10) == 0


def test_first_relevant_candidate() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    relevance = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert reciprocal_rank(scores, relevance) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert hit_rate(scores, relevance, top=2) == 0.5
    assert hit_rate(scores, relevance, top=1) == 0
    assert reciprocal_rank(scores, torch.zeros(2, 3)) == hit_rate(scores, torch.zeros(2, 3), top=2) == 0


def _some(count: int, width: int, *, classes: int, purpose: str) -> tuple[Tensor, Tensor]:
    generator = torch_rng(0, purpose)
    return (
        torch.randn(count, width, generator=generator),
        torch.randint(classes, (count, width), generator=generator).float(),
    )


def test_the_same_as_scikit_learn_and_scipy() -> None:
    from scipy.stats import spearmanr
    from sklearn.metrics import ndcg_score, roc_auc_score

    logits, many = _some(60, 3, classes=3, purpose="area")
    targets = many[:, 0].long()
    odds = torch.stack([logits[:, c] - logits[:, [k for k in range(3) if k != c]].logsumexp(1) for c in range(3)], 1)
    areas = [roc_auc_score((targets == c).numpy(), odds[:, c].numpy()) for c in range(3)]
    assert auc(logits, targets) == pytest.approx(sum(areas) / 3)

    scores, relevance = _some(20, 15, classes=4, purpose="gain")
    assert ndcg(scores, relevance, top=10) == pytest.approx(ndcg_score(relevance.numpy(), scores.numpy(), k=10))

    rounded = scores.round(decimals=1)  # with ties
    expected = spearmanr(rounded.flatten().numpy(), relevance.flatten().numpy()).statistic
    assert spearman(rounded.flatten(), relevance.flatten()) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(-1, 2)), min_size=1, max_size=8))
def test_measures_stay_between_0_and_1(candidates: list[tuple[float, int]]) -> None:
    scores, relevance = (torch.tensor([part], dtype=torch.float32) for part in zip(*candidates, strict=True))
    measures = [
        ndcg(scores, relevance, top=3),
        reciprocal_rank(scores, relevance),
        hit_rate(scores, relevance, top=3),
        auc(scores, relevance[0, :1].long().clamp_min(0)),
    ]
    assert all(0 <= measure <= 1 + 1e-12 for measure in measures)
    if (relevance > 0).any():
        assert ndcg(relevance, relevance, top=3) == pytest.approx(1)
