from __future__ import annotations

import math

import torch
from torch import tensor

from fedstill.common.metrics import accuracy, class_accuracy, macro_f1

LOGITS = tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])  # says 0, 1, 0, 1
TARGETS = tensor([0, 1, 1, 1])


def test_accuracy() -> None:
    assert accuracy(LOGITS, TARGETS) == 0.75
    assert accuracy(LOGITS[:0], TARGETS[:0]) == 0.0


def test_class_accuracy() -> None:
    first, second, third = class_accuracy(LOGITS, TARGETS, 3)
    assert (first, second) == (1.0, 2 / 3)
    assert math.isnan(third)


def test_macro_f1() -> None:
    # Class 0: one right, one too many: 2/(2 + 1) = 2/3. Class 1: two right, one missed: 4/(4 + 1) = 4/5.
    assert macro_f1(LOGITS, TARGETS) == (2 / 3 + 4 / 5) / 2
    assert macro_f1(torch.zeros(0, 3), TARGETS[:0]) == 0.0
