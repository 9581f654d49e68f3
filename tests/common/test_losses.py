"""Losses and output kinds, against numbers computed by hand.

The student's logits are mostly (ln 3, 0): softmax gives (3/4, 1/4), and sigmoid(ln 3) = 3/4.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from fedstill.common.errors import ConfigError, KnowledgeError, Reason, UnsupportedError
from fedstill.common.losses import score_loss, soft_label_loss, weighted_mean
from fedstill.common.outputs import OUTPUTS, OutputKind, output_kind
from fedstill.common.outputs.categorical import Categorical
from fedstill.common.outputs.multi_label import MultiLabel
from fedstill.common.outputs.regression import Regression

LN2, LN3 = math.log(2), math.log(3)
LN43 = math.log(4 / 3)


def close(value: Tensor, *expected: float) -> None:
    torch.testing.assert_close(value.flatten(), tensor(expected, dtype=value.dtype), rtol=1e-6, atol=1e-7)


class TestCategorical:
    kind = Categorical()

    def test_soften_divides_by_the_temperature(self) -> None:
        close(self.kind.soften(tensor([[LN3, 0.0]]), 1.0), 3 / 4, 1 / 4)
        close(self.kind.soften(tensor([[2 * LN3, 0.0]]), 2.0), 3 / 4, 1 / 4)

    def test_divergence_is_the_sum_over_classes(self) -> None:
        # KL((1/2, 1/2) ‖ (3/4, 1/4)) = ½ ln(2/3) + ½ ln 2 = ½ ln(4/3)
        close(self.kind.divergence(tensor([[LN3, 0.0]]), tensor([[0.5, 0.5]]), 1.0), LN43 / 2)

    def test_a_class_that_the_teacher_rules_out_adds_nothing(self) -> None:
        # KL((1, 0) ‖ (3/4, 1/4)) = ln(4/3)
        close(self.kind.divergence(tensor([[LN3, 0.0]]), tensor([[1.0, 0.0]]), 1.0), LN43)

    def test_the_temperature_counts_squared(self) -> None:
        # At T = 2 logits (2 ln 3, 0) soften to (3/4, 1/4) again: 2² · ½ ln(4/3) = 2 ln(4/3)
        close(self.kind.divergence(tensor([[2 * LN3, 0.0]]), tensor([[0.5, 0.5]]), 2.0), 2 * LN43)

    def test_positions_are_averaged_and_samples_are_not(self) -> None:
        logits = tensor([[[LN3, 0.0], [0.0, 0.0]]])  # one sample at two positions: ½ ln(4/3) and 0
        close(self.kind.divergence(logits, torch.full((1, 2, 2), 0.5), 1.0), LN43 / 4)

    def test_loss_is_the_mean_cross_entropy(self) -> None:
        # −ln(3/4) = ln(4/3) and −ln(1/4) = ln 4; their mean
        close(self.kind.loss(tensor([[LN3, 0.0], [LN3, 0.0]]), tensor([0, 1])), (LN43 + math.log(4)) / 2)

    def test_entropy_in_nats(self) -> None:
        close(self.kind.entropy(tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]])), LN2, 0.0, LN2 * 2 - 0.75 * LN3)

    def test_sharpening_is_the_softmax_of_probabilities(self) -> None:
        # softmax((3/4, 1/4) / T)₁ = sigmoid((1/2) / T): T = 1/2 gives sigmoid(1), T = 1/4 sigmoid(2)
        close(self.kind.sharpen(tensor([[0.75, 0.25]]), 0.5)[:, 0], 1 / (1 + math.exp(-1)))
        close(self.kind.sharpen(tensor([[0.75, 0.25]]), 0.25)[:, 0], 1 / (1 + math.exp(-2)))

    def test_nearly_even_labels_get_harder_below_one_over_c_only(self) -> None:
        even = tensor([[0.51, 0.49]], dtype=torch.float64)
        assert float(self.kind.sharpen(even, 0.4)[0, 0]) > 0.51
        assert 0.5 < float(self.kind.sharpen(even, 0.6)[0, 0]) < 0.51

    def test_hardening_keeps_the_share_of_each_class(self) -> None:
        # At T = 1/2 the odds 1 and 4 are squared and get a common factor b: q = b / (1 + b), 16b / (1 + 16b), whose sum
        # is the shares' 1/2 + 4/5 = 13/10: 16b² (2 − 1.3) + 17b (1 − 1.3) − 1.3 = 0, so 11.2b² − 5.1b − 1.3 = 0.
        factor = (5.1 + math.sqrt(5.1**2 + 4 * 11.2 * 1.3)) / 22.4
        hard = self.kind.harden(tensor([[0.5, 0.5], [0.8, 0.2]]), 0.5)
        torch.testing.assert_close(
            hard[:, 0], tensor([factor / (1 + factor), 16 * factor / (1 + 16 * factor)]), rtol=0, atol=1e-3
        )
        close(hard.sum(-1), 1.0, 1.0)

    def test_hardening_finds_the_rare_class_that_sharpening_loses(self) -> None:
        mean = tensor([[0.9, 0.1]] * 7 + [[0.6, 0.4]] * 3)
        assert self.kind.sharpen(mean, 0.1).argmax(-1).sum() == 0
        assert self.kind.harden(mean, 0.1).argmax(-1).tolist() == [0] * 7 + [1] * 3

    def test_a_temperature_of_one_hardens_nothing(self) -> None:
        close(self.kind.harden(tensor([[0.75, 0.25], [1.0, 0.0]]), 1.0), 0.75, 0.25, 1.0, 0.0)

    def test_restriction_keeps_proportions_and_tells_the_mass(self) -> None:
        soft, mass = self.kind.restrict(tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]), tensor([0, 2]))
        close(soft, 2 / 7, 5 / 7, 0.0, 0.0)
        close(mass, 0.7, 0.0)

    def test_a_sample_without_mass_pulls_nothing_and_breaks_nothing(self) -> None:
        logits = tensor([[1.0, -1.0]], requires_grad=True)
        soft, mass = self.kind.restrict(tensor([[0.0, 1.0, 0.0]]), tensor([0, 2]))
        torch.autograd.backward(soft_label_loss(logits, soft, kind=self.kind, temperature=1.0, weights=mass))
        assert logits.grad is not None
        close(logits.grad, 0.0, 0.0)


class TestMultiLabel:
    kind = MultiLabel()

    def test_soften(self) -> None:
        close(self.kind.soften(tensor([[2 * LN3, 0.0]]), 2.0), 3 / 4, 1 / 2)

    def test_divergence_adds_the_classes(self) -> None:
        # Bernoulli(1/2) ‖ Bernoulli(3/4) = ½ ln(4/3); Bernoulli(1) ‖ Bernoulli(3/4) = ln(4/3)
        close(self.kind.divergence(tensor([[LN3, LN3]]), tensor([[0.5, 1.0]]), 1.0), 1.5 * LN43)

    def test_the_temperature_counts_squared(self) -> None:
        close(self.kind.divergence(tensor([[3 * LN3]]), tensor([[0.5]]), 3.0), 4.5 * LN43)

    def test_loss_is_the_mean_over_samples_and_classes(self) -> None:
        # −ln(3/4) for the label that is there, −ln(1/4) for the one that is not
        close(self.kind.loss(tensor([[LN3, LN3]]), tensor([[1, 0]])), (LN43 + math.log(4)) / 2)

    def test_entropy_adds_the_classes(self) -> None:
        close(self.kind.entropy(tensor([[0.5, 1.0], [0.5, 0.5]])), LN2, 2 * LN2)

    def test_sharpening_is_the_two_class_case(self) -> None:
        wanted = Categorical().sharpen(tensor([[0.75, 0.25]]), 0.1)[0, 0]
        close(self.kind.sharpen(tensor([[0.75]]), 0.1), float(wanted))

    def test_classes_do_not_depend_on_each_other(self) -> None:
        soft, mass = self.kind.restrict(tensor([[0.2, 0.9, 0.4]]), tensor([2, 0]))
        close(soft, 0.4, 0.2)
        close(mass, 1.0)


class TestRegression:
    kind = Regression()

    def test_divergence_is_half_the_squared_error(self) -> None:
        # ½ ((2 − 0)² + (1 − 1)²) = 2, at whatever temperature
        close(self.kind.divergence(tensor([[2.0, 1.0]]), tensor([[0.0, 1.0]]), 7.0), 2.0)

    def test_loss_is_the_mean_squared_error_of_a_column_too(self) -> None:
        close(self.kind.loss(tensor([[2.0], [0.0]]), tensor([0.0, 1.0])), 2.5)

    def test_has_no_probabilities(self) -> None:
        close(self.kind.soften(tensor([[5.0]]), 2.0), 5.0)
        with pytest.raises(UnsupportedError, match="entropy"):
            self.kind.entropy(tensor([[1.0]]))
        with pytest.raises(UnsupportedError, match="sharpening"):
            self.kind.sharpen(tensor([[1.0]]), 1.0)


class TestChecks:
    @pytest.mark.parametrize("kind", [Categorical(), MultiLabel()])
    @pytest.mark.parametrize("value", [-1e-9, 1.0000002])
    def test_not_a_hair_outside_0_to_1(self, kind: OutputKind, value: float) -> None:
        with pytest.raises(KnowledgeError, match="expected probabilities from 0 to 1") as caught:
            kind.check(tensor([[value, 1 - value]]))
        assert caught.value.reason is Reason.RANGE

    @pytest.mark.parametrize("kind", [output_kind(name) for name in OUTPUTS.names()])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_numbers(self, kind: OutputKind, value: float) -> None:
        with pytest.raises(KnowledgeError, match="expected finite") as caught:
            kind.check(tensor([[value, 0.0]]))
        assert caught.value.reason is Reason.NOT_FINITE

    def test_a_distribution_sums_to_1(self) -> None:
        with pytest.raises(KnowledgeError, match=r"miss a sum of 1 by 0\.1"):
            Categorical().check(tensor([[0.5, 0.4]]))

    def test_a_huge_regression_output(self) -> None:
        with pytest.raises(KnowledgeError, match=r"expected at most 1e\+06 \(standardise"):
            Regression().check(tensor([[1e30]]))

    @pytest.mark.parametrize("kind", [output_kind(name) for name in OUTPUTS.names()])
    def test_nothing_is_fine(self, kind: OutputKind) -> None:
        kind.check(torch.zeros(0, 3))

    @settings(deadline=None, max_examples=50)
    @given(st.integers(1, 200), st.integers(0, 2**32))
    def test_half_precision_stays_within_the_tolerance(self, classes: int, seed: int) -> None:
        logits = 6 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
        Categorical().check(torch.softmax(logits, -1).half().float())

    def test_a_misspelt_kind_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'categorical'"):
            output_kind("categoric")


class TestLosses:
    def test_weighted_mean_divides_by_the_number_of_samples(self) -> None:
        losses = tensor([1.0, 3.0])
        close(weighted_mean(losses), 2.0)
        close(weighted_mean(losses, tensor([1.0, 0.0])), 0.5)  # (1 · 1 + 0 · 3) / 2

    def test_soft_label_loss_is_batchmean(self) -> None:
        # Samples lose ½ ln(4/3) and 0; the mean over two samples, not over two samples × two classes
        logits = tensor([[LN3, 0.0], [0.0, 0.0]])
        soft = torch.full((2, 2), 0.5)
        loss = soft_label_loss(logits, soft, kind=Categorical(), temperature=1.0)
        close(loss, LN43 / 4)
        reference = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), soft, reduction="batchmean")
        close(loss, float(reference))

    def test_the_gradient_is_t_times_the_difference(self) -> None:
        # d/dz [T² KL] = T (p − q): 2 · (3/4 − 1/2) = 1/2, and half of it each in a batch of two
        logits = tensor([[2 * LN3, 0.0], [2 * LN3, 0.0]], requires_grad=True)
        torch.autograd.backward(soft_label_loss(logits, torch.full((2, 2), 0.5), kind=Categorical(), temperature=2.0))
        assert logits.grad is not None
        close(logits.grad, 0.25, -0.25, 0.25, -0.25)

    def test_score_loss_is_the_mean_absolute_difference(self) -> None:
        # (|1 − 0| + |2 − 4|) / 2 = 3/2 and 0; their mean 3/4, and 3/2 · 2 / 2 with weights (2, 0)
        logits, scores = tensor([[1.0, 2.0], [5.0, 5.0]]), tensor([[0.0, 4.0], [5.0, 5.0]])
        close(score_loss(logits, scores), 0.75)
        close(score_loss(logits, scores, tensor([2.0, 0.0])), 1.5)

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**32), st.floats(0.05, 20), st.sampled_from(["categorical", "multi-label", "regression"]))
    def test_no_divergence_from_oneself_and_none_below_zero(self, seed: int, temperature: float, name: str) -> None:
        kind = output_kind(name)
        generator = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
        own = kind.divergence(teacher, kind.soften(teacher, temperature), temperature)
        torch.testing.assert_close(own, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
        assert (kind.divergence(student, kind.soften(teacher, temperature), temperature) > -1e-12).all()
