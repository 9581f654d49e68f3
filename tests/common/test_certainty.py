"""Private certainty scores, and features from unlabelled samples: by hand, and against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import tensor

from fedstill.common.certainty import gaussian_scale, logistic_regression, private_scorer, scores, unit_rows
from fedstill.common.contrastive import nt_xent, pretrain
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import KnowledgeError, Reason, UnsupportedError
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Server
from fedstill.common.task import TaskSpec

LN3 = math.log(3)


def test_the_regression_by_hand() -> None:
    # Both rows have the margin w: σ(−w) = λ w at the minimum. For w = ln 3 that is ¼ = λ ln 3.
    rows, signs = tensor([[1.0], [-1.0]]).double(), tensor([1.0, -1.0]).double()
    assert float(logistic_regression(rows, signs, ridge=1 / (4 * LN3))) == pytest.approx(LN3, rel=1e-9)


def test_the_gradient_vanishes_where_steps_have_to_be_halved() -> None:
    rows = unit_rows(torch.randn(60, 5, generator=torch_rng(1)) + 1)
    signs = torch.where(torch.arange(60) < 40, 1.0, -1.0).double()
    found = logistic_regression(rows, signs, ridge=1e-5).requires_grad_()
    torch.autograd.backward(torch.log1p(torch.exp(-signs * (rows @ found))).mean() + 1e-5 / 2 * found @ found)
    assert found.grad is not None
    assert float(found.grad.norm()) < 1e-8


def test_scores_by_hand() -> None:
    # Rows are brought to length 1 first: ⟨w, h⟩ is ln 3, −ln 3, and 0 for a row of zeros.
    found = scores(tensor([LN3, 0.0]).double(), tensor([[5.0, 0.0], [-0.1, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [0.75, 0.25, 0.5], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), ridge=st.sampled_from([0.01, 0.1, 1.0]))
def test_another_example_moves_the_regression_no_farther_than_told(seed: int, ridge: float) -> None:
    rng = torch_rng(seed)
    rows = unit_rows(torch.randn(12, 3, generator=rng))
    signs = torch.where(torch.arange(12) < 6, 1.0, -1.0).double()
    other = rows.clone()
    other[0] = unit_rows(torch.randn(1, 3, generator=rng))[0]
    moved = logistic_regression(rows, signs, ridge=ridge) - logistic_regression(other, signs, ridge=ridge)
    assert float(moved.norm()) <= 2 / (ridge * 12)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-5), (8.0, 1e-3), (100.0, 1e-6)])
def test_the_noise_has_just_the_privacy_that_is_asked(epsilon: float, delta: float) -> None:
    scale = gaussian_scale(2.0, epsilon=epsilon, delta=delta) / 2.0
    lost = norm.cdf(0.5 / scale - epsilon * scale) - math.exp(epsilon) * norm.cdf(-0.5 / scale - epsilon * scale)
    assert lost == pytest.approx(delta, rel=1e-3)
    if epsilon < 1:
        assert scale < math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def test_noise_of_that_size_is_added() -> None:
    own, public = torch.ones(30, 2000), -torch.ones(20, 2000)
    common: dict[str, Any] = {"ridge": 0.5, "epsilon": 1.0, "delta": 1e-5}
    noisy = private_scorer(own, public, **common, chance=torch_rng(1))
    exact = logistic_regression(
        unit_rows(torch.cat([own, public])), tensor([1.0] * 30 + [-1.0] * 20).double(), ridge=0.5
    )
    wanted = gaussian_scale(2 / (0.5 * 50), epsilon=1.0, delta=1e-5)
    assert float((noisy - exact).std()) == pytest.approx(wanted, rel=0.05)
    assert torch.equal(noisy, private_scorer(own, public, **common, chance=torch_rng(1)))


def test_features_of_a_diverged_model() -> None:
    with pytest.raises(KnowledgeError, match="non-finite feature") as caught:
        unit_rows(tensor([[math.nan]]))
    assert caught.value.reason is Reason.NOT_FINITE


# Contrastive ---------------------------------------------------------------------------------------------------------


def test_nt_xent_by_hand() -> None:
    # Views of two samples, equal within a sample and orthogonal between: each row finds its other view among three.
    views = tensor([[2.0, 0.0], [0.0, 5.0]])
    assert float(nt_xent(views, views, temperature=1.0)) == pytest.approx(-math.log(math.e / (math.e + 2)), rel=1e-5)
    wrong = nt_xent(views, views.flip(0), temperature=0.5)
    assert float(wrong) == pytest.approx(-math.log(1 / (math.e**2 + 2)), rel=1e-5)


def test_one_sample_has_nobody_to_be_told_from() -> None:
    assert float(nt_xent(tensor([[1.0, 2.0]]), tensor([[3.0, 1.0]]), temperature=0.5)) == 0.0


def server(modality: str = "tabular", model: str = "mlp-small") -> Server:
    spec = TaskSpec("t", "categorical", "tabular", ("a", "b"), (6,))
    network = build_model(model, spec, seed=1)
    return Server(
        spec=TaskSpec("t", "categorical", modality, ("a", "b"), (6,)),
        model_name=model,
        model=network,
        proxy=ProxySet(torch.randn(40, 6, generator=torch_rng(2))),
        samples=np.arange(40),
        training=Training(batch_size=20, learning_rate=0.01),
        seed=3,
        round=0,
    )


def test_pretraining_teaches_the_body_alone() -> None:
    losses = {epochs: pretrain(server(), epochs=epochs) for epochs in (1, 40)}
    assert losses[40] < 0.8 * losses[1]
    first, second, untouched = server(), server(), server()
    pretrain(first, epochs=2)
    pretrain(second, epochs=2)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
        assert torch.equal(value, untouched.model.state_dict()[name]) == name.startswith("head")


def test_without_views_nothing_is_learnt() -> None:
    side = server("translation")
    assert math.isnan(pretrain(side, epochs=3))
    assert all(torch.equal(value, server().model.state_dict()[name]) for name, value in side.model.state_dict().items())


def test_a_model_without_features_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="choose a model with hidden layers"):
        pretrain(server(model="linear-softmax"), epochs=1)
