"""The output kind of object detection, with numbers computed by hand.

One sample of two cells and one class: heat, then ln width, ln height, dx, dy. The student's score is ln 3: a chance of
3/4.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from fedstill.common.errors import KnowledgeError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.outputs.dense import Dense

KIND = Dense()
LN2, LN3, LN43 = math.log(2), math.log(3), math.log(4 / 3)


def maps(*cells: list[float]) -> Tensor:
    """One sample, one row of cells: (1, 1, cells, channels)."""
    return tensor([[list(cells)]])


def close(value: Tensor, *expected: float) -> None:
    torch.testing.assert_close(value.flatten(), tensor(expected), rtol=1e-5, atol=1e-6)


def test_soften_leaves_geometry_alone() -> None:
    close(KIND.soften(maps([2 * LN3, 1.0, 2.0, 0.5, 0.25]), 2.0), 0.75, 1.0, 2.0, 0.5, 0.25)


def test_loss_of_a_centre_and_of_background() -> None:
    # A centre seen with 3/4: (1/4)² ln(4/3); background of heat 0 seen with 3/4: (3/4)² ln 4.
    blank = [0.0] * 4
    focal = LN43 / 16 + 9 / 16 * 2 * LN2
    close(KIND.loss(maps([LN3, *blank], [LN3, *blank]), maps([1.0, *blank], [0.0, *blank])), focal)
    # Heat of 1/2 near a centre takes the penalty down to (1/2)⁴ of it.
    near = LN43 / 16 + 9 / 16 * 2 * LN2 / 16
    close(KIND.loss(maps([LN3, *blank], [LN3, *blank]), maps([1.0, *blank], [0.5, *blank])), near)


def test_loss_of_geometry_goes_by_heat() -> None:
    # Errors of 1 + ½ at the centre and of 3 at heat ½: (1.5 + ½ · 3) / 1.5 = 2
    far = 40.0  # as sure as can be, so that no heat is wrong
    own = maps([far, 1.0, 0.0, 0.5, 0.0], [-far, 0.0, 3.0, 0.0, 0.0])
    close(KIND.loss(own, maps([1.0, 0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0, 0.0])), 2.0)


def test_images_without_objects_have_a_loss_of_background_alone() -> None:
    close(KIND.loss(maps([0.0, 9.0, 9.0, 9.0, 9.0]), maps([0.0] * 5)), LN2 / 4)


def test_divergence_counts_where_the_teacher_sees_objects() -> None:
    # Heat: KL(½ ‖ ¾) = ½ ln(4/3) at the first cell, 0 at the second (equal), over Σ w = ¼ + 9/16 < 1, so over 1.
    # Geometry: ¼ · 2 at the first cell, 9/16 · 1 at the second.
    student = maps([LN3, 2.0, 0.0, 0.0, 0.0], [LN3, 0.0, 0.0, 1.0, 0.0])
    teacher = maps([0.5, 0.0, 0.0, 0.0, 0.0], [0.75, 0.0, 0.0, 0.0, 0.0])
    close(KIND.divergence(student, teacher, 1.0), LN43 / 2 + 0.5 + 9 / 16)
    # Three times the same cells: Σ w = 39/16 > 1
    again = KIND.divergence(torch.cat([student] * 3, 2), torch.cat([teacher] * 3, 2), 1.0)
    close(again, (LN43 / 2 + 0.5 + 9 / 16) * 16 / 13)


def test_divergence_at_a_temperature_counts_squared() -> None:
    close(KIND.divergence(maps([2 * LN3, *[0.0] * 4]), maps([0.5, *[0.0] * 4]), 2.0), 2 * LN43)


def test_blank_cells_teach_nothing() -> None:
    logits = maps([LN3, 5.0, 5.0, 5.0, 5.0]).requires_grad_()
    value = KIND.divergence(logits, maps([0.0] * 5), 1.0)
    close(value.detach(), 0.0)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_agreement_is_no_divergence() -> None:
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    close(KIND.divergence(logits, KIND.soften(logits, 3.0), 3.0), 0.0, 0.0)


def test_entropy_and_sharpening_of_heat() -> None:
    soft = maps([0.5, 7.0, 7.0, 7.0, 7.0], [1.0, 7.0, 7.0, 7.0, 7.0])
    close(KIND.entropy(soft), LN2 / 2)
    # sigmoid((2 · ½ − 1) / T) = ½, and sigmoid(1 / T) = ¾ at T = 1 / ln 3
    close(KIND.sharpen(soft, 1 / LN3), 0.5, 7, 7, 7, 7, 0.75, 7, 7, 7, 7)


def test_classes_are_chosen_with_geometry() -> None:
    chosen, weight = KIND.restrict(maps([0.1, 0.9, 1.0, 2.0, 3.0, 4.0]), tensor([1, 2, 3, 4, 5]))
    close(chosen, 0.9, 1.0, 2.0, 3.0, 4.0)
    close(weight, 1.0)


def test_who_sees_an_object_says_how_large_it_is() -> None:
    sees = np.array([[[[0.9, 2.0, 2.0, 0.5, 0.5]]]], np.float32)
    blind = np.array([[[[0.1, 0.0, 0.0, 0.0, 0.0]]]], np.float32)
    mean = KIND.combine([sees, blind], np.array([1.0, 1.0]))
    np.testing.assert_allclose(mean, [[[[0.5, 1.8, 1.8, 0.45, 0.45]]]], rtol=1e-6)
    # Shares count in both: 3 · 0.1 against 1 · 0.9
    mean = KIND.combine([sees, blind], np.array([1.0, 3.0]))
    np.testing.assert_allclose(mean, [[[[0.3, 1.5, 1.5, 0.375, 0.375]]]], rtol=1e-6)
    nobody = KIND.combine([np.array([[[[0.0, 2.0, 2.0, 2.0, 2.0]]]], np.float32), 0 * blind], np.array([1.0, 1.0]))
    np.testing.assert_allclose(nobody, [[[[0.0, 1.0, 1.0, 1.0, 1.0]]]])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([1.5, 0, 0, 0, 0], r"dense soft labels from 1.5 to 1.5.*expected probabilities"),
        ([math.nan, 0, 0, 0, 0], "non-finite dense soft labels"),
        ([0.5, 0, 0, math.nan, 0], "non-finite dense soft labels"),
        ([0.5, 0, -math.inf, 0, 0], "non-finite dense soft labels"),
        ([0.5, 0, -101, 0, 0], "geometry of a box of 101: expected at most 100"),
        ([0, 0, 0, 0], "4 channels: expected at least one class, then width, height, dx, dy"),
    ],
)
def test_what_cannot_be_boxes_is_refused(cell: list[float], message: str) -> None:
    with pytest.raises(KnowledgeError, match=message):
        SoftLabels("dense", tuple(map(str, range(len(cell)))), np.arange(1), maps(cell).float().numpy())
