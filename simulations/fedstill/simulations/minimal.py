"""Cross-task distillation in one screen: a student learns from a teacher in its own task and in one it has no label of.

Both have one trunk and two heads: which digit is it, and is it even or odd? The student's own 60 images are labelled
"even" or "odd" and no more. On public images without labels it follows the teacher's soft labels.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from fedstill.common.seeding import torch_rng, torch_seeded

T = 2.0  # temperature
TAUGHT = {"nothing": (), "digit": ("digit",), "digit and parity": ("digit", "parity")}


class Model(nn.Module):
    """A trunk that the tasks share, and a head for each: what one task teaches the trunk, every head can use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleDict({"digit": nn.Linear(width, 10), "parity": nn.Linear(width, 2)})

    def forward(self, images: Tensor, task: str) -> Tensor:  # noqa: D102
        logits: Tensor = self.heads[task](self.trunk(images))
        return logits


def train(model: Model, loss: Callable[[], Tensor]) -> None:
    """200 steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(loss())
        optimizer.step()


def accuracies(seed: int) -> dict[str, dict[str, float]]:
    """The student's test accuracy in each task, by what the teacher tells."""
    digits = load_digits()
    order = torch.randperm(1797, generator=torch_rng(seed, "order"))
    images = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
    digit = torch.tensor(digits.target)[order]
    labels = {"digit": digit, "parity": digit % 2}
    known, private, public, test = slice(600), slice(600, 660), slice(660, 1160), slice(1160, None)

    with torch_seeded(seed, "teacher"):
        teacher = Model(width=64)
    train(
        teacher, lambda: torch.stack([cross_entropy(teacher(images[known], t), labels[t][known]) for t in labels]).sum()
    )
    with torch.no_grad():
        soft = {task: softmax(teacher(images[public], task) / T, dim=1) for task in labels}

    def student(taught: tuple[str, ...]) -> Model:
        with torch_seeded(seed, "student"):
            model = Model(width=32)

        def loss() -> Tensor:
            total = cross_entropy(model(images[private], "parity"), labels["parity"][private])
            for task in taught:
                log_student = log_softmax(model(images[public], task) / T, dim=1)
                total = total + T**2 * kl_div(log_student, soft[task], reduction="batchmean")
            return total

        train(model, loss)
        return model

    def measured(model: Model) -> dict[str, float]:
        return {t: float((model(images[test], t).argmax(1) == labels[t][test]).float().mean()) for t in labels}

    return {name: measured(student(taught)) for name, taught in TAUGHT.items()}


def main(seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    """Print the mean accuracies."""
    runs = [accuracies(seed) for seed in seeds]
    print("the teacher tells    even or odd   which digit")
    for name in TAUGHT:
        parity, digit = (mean(run[name][task] for run in runs) for task in ("parity", "digit"))
        print(f"{name:19}{parity:11.1%}{digit:14.1%}")


if __name__ == "__main__":
    main()
