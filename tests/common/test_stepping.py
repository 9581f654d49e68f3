from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedstill.common.learning import Training, fit
from fedstill.common.seeding import torch_rng
from fedstill.common.stepping import SGD, Adam, watch_steps

KINDS = pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam, lambda weights, **options: torch.optim.Adam(weights, fused=True, **options)),
        (SGD, lambda weights, **options: torch.optim.SGD(weights, momentum=0.9, fused=True, **options)),
    ],
)


def layers() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5), nn.Linear(5, 3))
    rng = torch_rng(0, "layers")
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=rng) / 3
    first, *_, last = model.parameters()
    first.data = first.data.to(memory_format=torch.channels_last)
    last.requires_grad_(False)
    return model


def trained(make: Callable[..., Any]) -> list[Tensor]:
    model, rng = layers(), torch_rng(0, "batches")
    optimizer = make(list(model.parameters()))
    for _ in range(7):
        optimizer.zero_grad()
        outputs = model(torch.randn(16, 1, 6, 6, generator=rng))
        torch.autograd.backward(nn.functional.cross_entropy(outputs, torch.randint(3, (16,), generator=rng)))
        optimizer.step()
    return [weight.detach() for weight in model.parameters()]


@KINDS
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_steps_are_torchs_to_the_bit(ours: Any, theirs: Any, decay: float) -> None:
    found = trained(lambda weights: ours(weights, learning_rate=0.03, weight_decay=decay))
    wanted = trained(lambda weights: theirs(weights, lr=0.03, weight_decay=decay))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert not torch.equal(found[0], next(layers().parameters()))
    assert torch.equal(found[-1], [*layers().parameters()][-1])  # frozen


def test_a_weight_that_gets_its_first_gradient_late() -> None:
    first, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Adam([first, late], learning_rate=0.1, weight_decay=0.0)
    for losses in ([first], [first, late]):
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack([weight.sum() for weight in losses]).sum())
        optimizer.step()
    # Adam's first step is the learning rate.
    assert late.tolist() == pytest.approx([0.9, 0.9])
    assert first.tolist() == pytest.approx([0.8, 0.8])


def test_steps_are_watched_until_it_is_ended() -> None:
    seen: list[str] = []
    end = watch_steps(lambda: seen.append("step"))
    model = nn.Linear(1, 1)
    inputs = torch.ones(5, 1)
    fit(model, inputs, (), lambda out: out.mean(), training=Training(batch_size=2), epochs=2, seed=0)
    end()
    end()
    fit(model, inputs, (), lambda out: out.mean(), training=Training(), epochs=1, seed=0)
    assert len(seen) == 6


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_does_not_load_torchs_compiler(optimizer: str) -> None:
    code = f"""
import sys
import torch
from fedstill.common.learning import Training, fit, predict
model = torch.nn.Linear(1, 1)
training = Training(optimizer="{optimizer}")
fit(model, torch.ones(5, 1), (), lambda out: out.mean(), training=training, epochs=1, seed=0)
predict(model, torch.ones(5, 1), training=training)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
