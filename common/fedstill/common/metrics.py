"""Measures of predictions: pure functions of raw outputs and targets."""

from __future__ import annotations

import torch
from torch import Tensor


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of samples whose highest output is the target; 0 for no samples."""
    return float((logits.argmax(-1) == targets).double().mean()) if len(targets) else 0.0


def class_accuracy(logits: Tensor, targets: Tensor, classes: int) -> list[float]:
    """Accuracy on the samples of each class; NaN for a class without samples."""
    hits = (logits.argmax(-1) == targets).double()
    right = torch.zeros(classes, dtype=torch.float64).index_add_(0, targets, hits)
    total = torch.bincount(targets, minlength=classes).double()
    rates: list[float] = (right / total).tolist()
    return rates


def macro_f1(logits: Tensor, targets: Tensor) -> float:
    """Mean F1 over the classes that occur among targets or predictions."""
    predictions = logits.argmax(-1)
    scores = []
    for label in torch.unique(torch.cat([predictions, targets])):
        true_positive = ((predictions == label) & (targets == label)).sum().double()
        wrong = (predictions == label).sum() + (targets == label).sum() - 2 * true_positive
        scores.append(float(2 * true_positive / (2 * true_positive + wrong)))
    return sum(scores) / len(scores) if scores else 0.0
