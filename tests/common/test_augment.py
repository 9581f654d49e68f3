from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.augment import agreement, check_views, image_view, speech_view, tabular_view, text_view
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training, fit
from fedstill.common.models import build_model
from fedstill.common.scenario import Scenario, TaskPlan
from fedstill.common.seeding import derive, torch_rng
from fedstill.common.sides import Client
from fedstill.common.task import Examples, TaskSpec
from fedstill.common.tasks.image import ImageTask

IMAGES = TaskSpec("digits", "categorical", "image", ("a", "b", "c"), (1, 8, 8))


def chance(seed: int = 0) -> torch.Generator:
    return torch_rng(seed, "views")


@pytest.mark.parametrize(
    ("view", "inputs"),
    [
        (image_view, torch.randn(5, 3, 8, 6)),
        (text_view, torch.randint(0, 9, (5, 12))),
        (text_view, torch.randint(0, 9, (5, 2, 12))),
        (speech_view, torch.randn(5, 1, 16, 20)),
        (speech_view, torch.randn(5, 16, 20)),
        (tabular_view, torch.randn(5, 40)),
    ],
)
def test_a_view_keeps_shape_and_type_and_is_drawn_from_its_generator(view: Any, inputs: Tensor) -> None:
    before = (inputs.clone(), torch.get_rng_state().clone())
    one, same, other = view(inputs, chance(1)), view(inputs, chance(1)), view(inputs, chance(2))
    assert (one.shape, one.dtype) == (inputs.shape, inputs.dtype)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(inputs, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert view(inputs[:0], chance()).shape == inputs[:0].shape


def test_an_image_is_shifted_by_an_eighth_and_loses_at_most_a_third_of_each_side() -> None:
    # Each pixel's value is its place: 1 + 8 · row + column.
    image = (1 + torch.arange(64.0)).reshape(1, 1, 8, 8)
    shifts, blanks = set(), set()
    for seen in image_view(image.expand(400, -1, -1, -1), chance())[:, 0]:
        there = seen != 0
        rows, columns = torch.where(there)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            source = int(seen[row, column]) - 1
            if 0 < row < 7 and 0 < column < 7:
                shifts.add((source // 8 - row, source % 8 - column))
        blank = ~there
        blanks.add((int(blank.any(1).sum()), int(blank.any(0).sum())))
        assert int(blank.sum()) == int(blank.any(1).sum() * blank.any(0).sum())  # a rectangle
    assert shifts == {(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)}
    assert max(blanks) == (3, 3)
    assert (0, 0) in blanks


def test_an_image_is_mirrored_only_if_asked() -> None:
    ramp = torch.arange(1.0, 9.0).expand(200, 1, 8, 8)

    def falling(images: Tensor) -> int:
        return int(((images[:, :, :, 1:] < images[:, :, :, :-1]) & (images[:, :, :, 1:] > 0)).flatten(1).any(1).sum())

    assert falling(image_view(ramp, chance())) == 0
    assert 60 < falling(image_view(ramp, chance(), mirror=True)) < 140


def test_a_text_loses_tokens_but_keeps_the_places_of_the_others() -> None:
    tokens = torch.arange(1, 41).repeat(500, 1)
    tokens[:, 30:] = 0
    seen = text_view(tokens, chance())
    left = seen != 0
    assert torch.equal(seen[left], tokens[left])
    # A tenth of 30 one by one, and a span of 0 to 6: about 3 + 3 − their overlap.
    assert 4.5 < float((~left[:, :30]).float().sum(1).mean()) < 6.5
    single = torch.tensor([[7, 0, 0]] * 100)
    assert torch.equal(text_view(single, chance()), single)


def test_speech_loses_a_span_of_frames_and_one_of_bands() -> None:
    seen = speech_view(torch.ones(300, 1, 16, 20), chance())[:, 0] == 0
    bands, frames = seen.all(2).sum(1), seen.all(1).sum(1)
    assert (int(bands.max()), int(frames.max())) == (4, 4)
    assert int(bands.min()) == int(frames.min()) == 0
    assert torch.equal(seen, seen.all(2, keepdim=True) | seen.all(1, keepdim=True))


def test_a_row_takes_a_tenth_of_its_cells_from_other_rows_of_the_same_column() -> None:
    rows = torch.arange(200.0)[:, None] + 1000 * torch.arange(50.0)
    seen = tabular_view(rows, chance())
    assert torch.equal(seen // 1000, rows // 1000)
    assert 0.08 < float((seen != rows).float().mean()) < 0.12


def test_the_loss_by_hand() -> None:
    # The model answers (s, 0) where s is the sum of what a view left. Views differ, so KL(first ‖ second) > 0.
    spec = TaskSpec("words", "categorical", "text", ("a", "b"), (12,), vocabulary=9)
    tokens = torch.arange(1, 9).repeat(1, 2)[:, :12]

    def run(inputs: Tensor) -> Tensor:
        return torch.stack([inputs.sum(1).float() / 30, torch.zeros(len(inputs))], 1)

    loss = agreement(spec, Training(consistency=0.5), seed=3)
    assert loss is not None
    generator = chance(3)
    first, second = (run(text_view(tokens, generator))[0, 0].item() for _ in range(2))
    p, q = (1 / (1 + math.exp(-value)) for value in (first, second))
    wanted = 0.5 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert first != second
    assert float(loss(run, tokens)) == pytest.approx(wanted, rel=1e-4)


def test_tokens_that_a_view_left_out_are_not_compared() -> None:
    spec = TaskSpec("tags", "token-level", "text", ("a", "b"), (40,), vocabulary=9)
    tokens = torch.randint(1, 9, (20, 40), generator=chance())

    def run(inputs: Tensor) -> Tensor:
        return torch.stack([10.0 * (inputs == 0), inputs.float()], -1)  # another answer only where a token is missing

    loss = agreement(spec, Training(consistency=1.0), seed=1)
    assert loss is not None
    assert float(loss(run, tokens)) == pytest.approx(0, abs=1e-6)


def test_only_the_second_view_has_a_gradient() -> None:
    seen: list[bool] = []

    def run(inputs: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return inputs.flatten(1)[:, :3]

    loss = agreement(IMAGES, Training(consistency=1.0), seed=1)
    assert loss is not None
    loss(run, torch.randn(4, 1, 8, 8))
    assert seen == [False, True]


def side(training: Training) -> Client:
    inputs = torch.randn(24, 1, 8, 8, generator=chance(5))
    return Client(
        spec=IMAGES,
        model_name="cnn-small",
        model=build_model("cnn-small", IMAGES, seed=1),
        proxy=ProxySet(inputs),
        samples=np.arange(24),
        training=training,
        seed=3,
        round=1,
        name="a",
        private=Examples(inputs, torch.arange(24) % 3),
    )


def test_it_works_on_private_and_on_proxy_samples_and_not_at_weight_0() -> None:
    values = np.full((24, 3), 1 / 3, dtype=np.float32)
    teacher = SoftLabels("categorical", IMAGES.classes, np.arange(24), values)

    def trained(weight: float, *, private: bool) -> tuple[float, Tensor]:
        client = side(Training(consistency=weight, epochs=1))
        loss = client.train() if private else client.distil(teacher, epochs=1)
        return loss, torch.cat([value.flatten() for value in client.model.state_dict().values()])

    for private in (True, False):
        off, on, again = (trained(weight, private=private) for weight in (0.0, 2.0, 2.0))
        assert on[0] == again[0]
        assert torch.equal(on[1], again[1])
        assert not torch.equal(off[1], on[1])


def test_off_is_what_it_was_to_the_bit() -> None:
    # `fit` without the argument is the loop as it was before consistency came.
    plain = side(Training(epochs=2))
    inputs, targets = plain.private.inputs, plain.private.targets
    wanted = fit(plain.model, inputs, (targets,), cross_entropy, training=Training(), epochs=2, seed=derive(3, "train"))
    other = side(Training(epochs=2, consistency=0.0))
    assert other.train() == wanted
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name])


def test_answers_to_views_come_nearer() -> None:
    generator = chance(6)
    inputs = torch.randn(64, 1, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (64,), generator=generator)

    def disagreement(weight: float) -> float:
        client = side(Training())
        training = Training(consistency=weight, learning_rate=5e-3)
        fit(
            client.model,
            inputs,
            (targets,),
            cross_entropy,
            training=training,
            epochs=30,
            seed=1,
            regulariser=agreement(IMAGES, training, seed=1),
        )
        measure = agreement(IMAGES, Training(consistency=1.0), seed=9)
        assert measure is not None
        with torch.no_grad():
            return float(measure(client.model.eval(), inputs))

    assert disagreement(3.0) < 0.5 * disagreement(0.0)


@pytest.mark.parametrize(
    ("output", "modality"),
    [("dense", "image"), ("sequence", "text"), ("categorical", "smell")],
)
def test_a_task_that_views_cannot_serve(output: str, modality: str) -> None:
    with pytest.raises(ConfigError, match=rf"training.consistency with task 't' of modality '{modality}'.*'{output}'"):
        check_views("t", output=output, modality=modality)


@pytest.mark.parametrize(
    ("output", "modality"),
    [("categorical", "image"), ("token-level", "text"), ("ranking", "text"), ("regression", "tabular")],
)
def test_a_task_that_views_can_serve(output: str, modality: str) -> None:
    check_views("t", output=output, modality=modality)


class PixelTask(ImageTask):
    """A class for each position of an image."""

    output = "token-level"


def test_a_scenario_is_refused_before_the_run() -> None:
    tasks = {"pixels": TaskPlan(PixelTask("digits"), ("cnn-small",))}
    Scenario(tasks, FedMD())
    with pytest.raises(ConfigError, match=r"task 'pixels' of modality 'image' and output kind 'token-level'"):
        Scenario(tasks, FedMD(), training=Training(consistency=1.0))


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"training_consistency=.*: expected >= 0"):
        Training(consistency=weight)


def test_bf16_too() -> None:
    client = side(Training(consistency=1.0, precision="bf16", epochs=1))
    assert math.isfinite(client.train())
    assert {value.dtype for value in client.model.state_dict().values()} == {torch.float32}
