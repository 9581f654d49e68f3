from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedstill.common.errors import ConfigError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.seeding import torch_rng, torch_seeded


def network(seed: int = 0, *, dropout: float = 0.2) -> nn.Sequential:
    with torch_seeded(seed, "network"):
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(6 * 36, 3), nn.LayerNorm(3)
        )


def examples(count: int = 96) -> tuple[Tensor, Tensor]:
    """Noise with a bright row: the row is the class."""
    generator = torch_rng(5, "examples")
    inputs = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (count,), generator=generator)
    inputs[torch.arange(count), 0, 2 * targets] += 2
    return inputs, targets


def trained(training: Training, *, seed: int = 1, epochs: int = 5) -> tuple[nn.Module, float]:
    model = network()
    inputs, targets = examples()
    return model, fit(model, inputs, (targets,), cross_entropy, training=training, epochs=epochs, seed=seed)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])
OPTIMIZERS = pytest.mark.parametrize(("optimizer", "rate"), [("adam", 5e-3), ("sgd", 2e-2)])


@PRECISIONS
@OPTIMIZERS
def test_the_same_seed_gives_the_same_weights_to_the_bit(precision: Any, optimizer: Any, rate: float) -> None:
    training = Training(precision=precision, optimizer=optimizer, learning_rate=rate, batch_size=10)
    first, loss = trained(training)
    again, same = trained(training)
    other, _ = trained(training, seed=2)
    assert loss == same
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


@PRECISIONS
@OPTIMIZERS
def test_the_loss_falls(precision: Any, optimizer: Any, rate: float) -> None:
    training = Training(precision=precision, optimizer=optimizer, learning_rate=rate, batch_size=16)
    _, first = trained(training, epochs=1)
    model, last = trained(training, epochs=8)
    assert last < first / 2
    inputs, targets = examples()
    assert float((predict(model, inputs, training=training).argmax(-1) == targets).double().mean()) > 0.9


def test_the_loss_is_the_mean_over_samples_not_over_batches() -> None:
    # A model that does not learn: y = 0. Targets 1, 1, 4 in batches of 2 and 1 have squared errors 1, 1, 16: mean 6.
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    inputs, targets = torch.zeros(3, 1), torch.tensor([[1.0], [1.0], [4.0]])
    loss = fit(model, inputs, (targets,), nn.functional.mse_loss, training=Training(batch_size=2), epochs=1, seed=0)
    assert loss == 6.0


def test_one_step_of_each_optimizer() -> None:
    # Loss w · 2, gradient 2: SGD takes 0.1 · 2 away; Adam's first step is the learning rate whatever the gradient.
    cases: list[tuple[Any, float]] = [("sgd", 1 - 0.2), ("adam", 1 - 0.1)]
    for optimizer, wanted in cases:
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        training = Training(optimizer=optimizer, learning_rate=0.1)
        fit(model, torch.full((1, 1), 2.0), (), lambda outputs: outputs.mean(), training=training, epochs=1, seed=0)
        assert model.weight.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("count", "epochs"), [(0, 3), (10, 0)])
def test_nothing_to_do(count: int, epochs: int) -> None:
    model = network()
    before = weights(model)
    inputs, targets = examples(count)
    loss = fit(model, inputs, (targets,), cross_entropy, training=Training(), epochs=epochs, seed=0)
    assert math.isnan(loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class WithBuffers(nn.Module):
    """A constant that bf16 cannot hold, and statistics that training changes."""

    fine: Tensor
    seen: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("fine", torch.tensor([0.1234567]))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.mean += 1
        outputs: Tensor = self.layer(inputs + self.fine.to(inputs.dtype))
        return outputs


def test_bf16_leaves_everything_in_fp32() -> None:
    model = WithBuffers()
    before = weights(model)
    training = Training(precision="bf16", batch_size=2, learning_rate=1e-5)
    inputs, targets = torch.randn(6, 3, generator=torch_rng(0)), torch.zeros(6, dtype=torch.int64)
    assert predict(model, inputs, training=training).dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fit(model, inputs, (targets,), cross_entropy, training=training, epochs=1, seed=0)
    after = model.state_dict()
    assert {value.dtype for value in after.values()} == {torch.float32, torch.int64}
    assert torch.equal(after["fine"], before["fine"])
    assert (after["seen"].item(), after["mean"].tolist()) == (3, [3.0, 3.0, 3.0])
    # Steps of 1e-5 would vanish in bf16, which has 8 bits.
    moved = (after["layer.weight"] - before["layer.weight"]).abs()
    assert 0 < moved.max() < 4e-5


@PRECISIONS
def test_a_model_that_predicted_can_still_be_trained(precision: Any) -> None:
    model, training = network(), Training(precision=precision)
    inputs, targets = examples(32)
    outputs = predict(model, inputs, training=training)
    assert not outputs.requires_grad
    fit(model, inputs, (outputs,), nn.functional.mse_loss, training=training, epochs=1, seed=0)
    assert not any(weight.is_inference() for weight in model.parameters())
    assert math.isfinite(fit(model, inputs, (targets,), cross_entropy, training=training, epochs=1, seed=0))


def test_bf16_follows_fp32() -> None:
    # Without the layer norm at the end: it divides by a spread of three numbers that bf16 rounds.
    inputs, targets = examples()
    model = network()[:-1]
    fit(model, inputs, (targets,), cross_entropy, training=Training(precision="fp32"), epochs=5, seed=1)
    exact = predict(model, inputs, training=Training())
    rounded = predict(model, inputs, training=Training(precision="bf16"))
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0.01)


def test_channels_last_gives_the_same_numbers() -> None:
    # Without dropout, which draws its mask in the order of memory.
    inputs, targets = examples()
    with_it, without = network(dropout=0.0), network(dropout=0.0)
    for model, channels_last in ((with_it, True), (without, False)):
        fit(model, inputs, (targets,), cross_entropy, training=Training(channels_last=channels_last), epochs=5, seed=1)
    for name, value in with_it.state_dict().items():
        torch.testing.assert_close(value, without.state_dict()[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        predict(with_it, inputs, training=Training(channels_last=True)),
        predict(with_it, inputs, training=Training(channels_last=False)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_predict_leaves_evaluation_mode_and_knows_no_batches() -> None:
    model, inputs = network(), examples(21)[0]
    model.train()
    whole = predict(model, inputs, training=Training())
    assert not model.training
    torch.testing.assert_close(predict(model, inputs, training=Training(), batch_size=4), whole, rtol=1e-5, atol=1e-5)
    assert predict(model, inputs[:0], training=Training()).shape == (0, 3)


@PRECISIONS
def test_nothing_touches_the_global_generators(precision: Any) -> None:
    before = (torch.get_rng_state().clone(), random.getstate(), np.random.get_state(legacy=False))
    trained(Training(precision=precision), epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[2])


@PRECISIONS
def test_an_error_in_the_loss_leaves_the_model_in_fp32(precision: Any) -> None:
    def broken(outputs: Tensor) -> Tensor:
        raise RuntimeError("broken")

    model = network()
    before = weights(model)
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, examples(8)[0], (), broken, training=Training(precision=precision), epochs=1, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"weight_decay": -1.0},
        {"weight_decay": math.nan},
        {"optimizer": "lion"},
        {"precision": "fp8"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training_\w+=.*: expected"):
        Training(**settings)
