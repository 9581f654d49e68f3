from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedstill.common.compression import latency, quantised, weight_bytes
from fedstill.common.errors import UnsupportedError
from fedstill.common.models import build_model
from fedstill.common.seeding import torch_rng, torch_seeded
from fedstill.common.task import TaskSpec

IMAGES = TaskSpec("digits", "categorical", "image", ("a", "b", "c"), (1, 12, 12))
SPEECH = TaskSpec("spoken", "categorical", "speech", ("a", "b", "c"), (1, 40, 64))
TEXTS = TaskSpec("news", "categorical", "text", ("a", "b", "c"), (16,), vocabulary=200)


def inputs(spec: TaskSpec, count: int = 64) -> Tensor:
    generator = torch_rng(0, "inputs")
    if spec.modality == "text":
        return torch.randint(0, spec.vocabulary, (count, *spec.input_shape), generator=generator)
    return torch.randn(count, *spec.input_shape, generator=generator)


MODELS = pytest.mark.parametrize(
    ("name", "spec", "share"),
    [
        ("cnn-small", IMAGES, 0.3),
        ("mlp-small", IMAGES, 0.3),
        ("linear-softmax", IMAGES, 0.3),
        ("resnet-8", IMAGES, 0.3),
        ("bag-small", TEXTS, 0.4),
    ],
)


@MODELS
def test_it_answers_as_the_model_did_in_a_quarter_of_the_bytes(name: str, spec: TaskSpec, share: float) -> None:
    model, seen = build_model(name, spec, seed=1).eval(), inputs(spec)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = quantised(model, seen)
    with torch.no_grad():
        wanted, answers = model(seen), small(seen)
    # The error is small beside how much the answers differ from sample to sample.
    assert float((answers - wanted).square().mean().sqrt()) < 0.1 * float(wanted.std())
    assert not torch.equal(answers, wanted)
    assert weight_bytes(small) < share * weight_bytes(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_whose_way_depends_on_its_input_says_what_can_make_it() -> None:
    model = build_model("speechcnn-small", SPEECH, seed=1).eval()
    with pytest.raises(UnsupportedError, match="fedstill export --int8 can make it"):
        quantised(model, inputs(SPEECH, 4))


def test_the_same_model_gives_the_same_integers() -> None:
    model, seen = build_model("cnn-small", IMAGES, seed=1), inputs(IMAGES)
    assert torch.equal(quantised(model, seen)(seen), quantised(model, seen)(seen))


def test_a_model_in_channels_last_layout_and_in_training_mode() -> None:
    model, seen = build_model("cnn-small", IMAGES, seed=1).train(), inputs(IMAGES)
    wanted = quantised(model, seen)(seen)
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)
    torch.testing.assert_close(quantised(model, seen)(seen), wanted)
    assert model.training


def test_bytes_by_hand() -> None:
    # 4 × 3 weights and 3 biases of 4 bytes.
    layer = nn.Linear(4, 3)
    assert weight_bytes(layer) == 4 * 15
    # 12 bytes of weights, 3 biases of 4, 3 scales and 3 zero points of 8, and what the activations need.
    with torch_seeded(0, "layer"):
        model = nn.Sequential(nn.Linear(4, 3))
    small = quantised(model, torch.randn(8, 4, generator=torch_rng(0)))
    extra = weight_bytes(small) - (12 + 12 + 48)
    assert 0 <= extra <= 32


def test_weights_are_half_a_step_off_at_most() -> None:
    layer = nn.Linear(50, 4)
    small: Any = quantised(nn.Sequential(nn.Embedding(5, 50), layer), torch.arange(5))
    kept = small[1].weight().dequantize()
    steps = small[1].weight().q_scale()
    assert float((kept - layer.weight.detach()).abs().max()) <= 0.5001 * steps
    assert small[1].weight().dtype == torch.qint8


def test_latency_is_the_median_of_single_calls() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, sample: Tensor) -> Tensor:
            self.calls += 1
            return sample

    model = Counting()
    assert 0 < latency(model, torch.zeros(1, 2), calls=20) < 0.1
    assert model.calls == 22


def test_a_processor_without_integer_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "none")
    with pytest.raises(UnsupportedError, match="int8 on this processor"):
        quantised(nn.Linear(1, 1), torch.zeros(1, 1))
