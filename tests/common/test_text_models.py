"""Every text family with every head that a text task can ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedstill.common.errors import UnsupportedError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, model_names, parameter_count
from fedstill.common.models.transformer import sinusoids
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec

VOCABULARY, LENGTH = 20, 6
CLASSES = ("a", "b", "c")
ONE = TaskSpec("t", "categorical", "text", CLASSES, (LENGTH,), VOCABULARY)
TASKS = {
    "classes": ONE,
    "several classes": replace(ONE, output="multi-label"),
    "positions": replace(ONE, output="token-level", positions=(LENGTH,)),
    "pair, number": replace(ONE, output="regression", classes=("score",), input_shape=(2, LENGTH)),
    "pair, classes": replace(ONE, input_shape=(2, LENGTH)),
    "candidates": replace(ONE, output="ranking", input_shape=(4, LENGTH)),
}
BODIES = ["bag-small", "bag-large", "textcnn-small", "textcnn-large", "transformer-small", "transformer-large"]


def tokens(spec: TaskSpec, count: int, *, seed: int = 3) -> Tensor:
    """Random texts of 1 to 5 tokens and padding."""
    rng = torch_rng(seed, "tokens")
    ids = torch.randint(1, VOCABULARY, (count, *spec.input_shape), generator=rng)
    lengths = torch.randint(1, LENGTH, (count, *spec.input_shape[:-1], 1), generator=rng)
    return ids * (torch.arange(LENGTH) < lengths)


def targets(spec: TaskSpec, inputs: Tensor) -> Tensor:
    """What each kind of head should learn, told by the first token of a text."""
    first = inputs[..., 0]
    if spec.output == "token-level":
        return torch.where(inputs == 0, -100, inputs % 3)
    if spec.output == "ranking":
        relevance: Tensor = (first[:, 1:] % 3 == first[:, :1] % 3).float()
        relevance[:, 0] = 1.0
        return relevance
    if spec.output == "regression":
        return ((first[:, 0] % 3) - (first[:, 1] % 3)).abs().float().unsqueeze(1)
    first = first if first.dim() == 1 else (first[:, 0] + first[:, 1])
    return torch.nn.functional.one_hot(first % 3, 3).float() if spec.output == "multi-label" else first % 3


def test_these_are_all_families_of_texts() -> None:
    assert set(BODIES) | {"linear-softmax"} == set(model_names("text"))


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("what", TASKS)
def test_every_head_on_every_body_learns(name: str, what: str) -> None:
    spec = TASKS[what]
    inputs = tokens(spec, 48)
    wanted = targets(spec, inputs)
    training = Training(batch_size=16, learning_rate=5e-3)
    model = build_model(name, spec, seed=1)
    outputs = predict(model, inputs, training=training)
    answers = {"ranking": (3,), "regression": (1,)}.get(spec.output, (3,))
    assert outputs.shape == (48, *spec.positions, *answers)
    before = float(spec.kind.loss(outputs, wanted))
    fit(model, inputs, (wanted,), spec.kind.loss, training=training, epochs=12, seed=1)
    assert float(spec.kind.loss(predict(model, inputs, training=training), wanted)) < 0.95 * before


@pytest.mark.parametrize("name", BODIES)
def test_states_are_zero_at_padding_and_nowhere_else(name: str) -> None:
    body = build_model(name, ONE, seed=1).eval().body
    inputs = tokens(ONE, 8)
    states = body(inputs)
    assert states.shape[:2] == (8, LENGTH)
    assert torch.equal((states != 0).any(-1), inputs != 0)
    assert body(torch.zeros(2, LENGTH, dtype=torch.int64)).abs().sum() == 0


@pytest.mark.parametrize("name", BODIES)
def test_padding_and_neighbours_change_no_state(name: str) -> None:
    body = build_model(name, ONE, seed=1).eval().body
    inputs = tokens(ONE, 8)
    states = body(inputs)
    longer = body(torch.nn.functional.pad(inputs, (0, 5)))
    torch.testing.assert_close(longer[:, :LENGTH], states)
    torch.testing.assert_close(body(inputs[2:3])[0], states[2])
    # Texts of a sample are read one by one.
    torch.testing.assert_close(body(inputs.reshape(4, 2, LENGTH)).flatten(0, 1), states)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_the_same_for_every_task(name: str) -> None:
    layouts = [
        {key: value.shape for key, value in build_model(name, spec, seed=1).body.state_dict().items()}
        for spec in (*TASKS.values(), replace(ONE, input_shape=(50,)))
    ]
    assert layouts[0]
    assert all(layout == layouts[0] for layout in layouts)


@pytest.mark.parametrize(("name", "count"), [("transformer-small", 574_660), ("transformer-large", 1_644_164)])
def test_weights_of_a_transformer_with_four_classes_and_8192_tokens(name: str, count: int) -> None:
    spec = replace(ONE, classes=("a", "b", "c", "d"), vocabulary=8192)
    assert parameter_count(build_model(name, spec, seed=1)) == count


def test_a_transformer_knows_the_order_of_words() -> None:
    model = build_model("transformer-small", ONE, seed=1).eval()
    assert not torch.allclose(model(torch.tensor([[1, 2, 3, 0, 0, 0]])), model(torch.tensor([[3, 2, 1, 0, 0, 0]])))
    bag = build_model("bag-small", ONE, seed=1).eval()
    assert torch.allclose(bag(torch.tensor([[1, 2, 3, 0, 0, 0]])), bag(torch.tensor([[3, 2, 1, 0, 0, 0]])))


def test_sinusoids_by_hand() -> None:
    # Rates of 1 and 1 / 100 for a width of 4.
    expected = [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    torch.testing.assert_close(sinusoids(2, 4), torch.tensor(expected))


def test_word_counts_compare_no_texts() -> None:
    spec = TaskSpec("pairs", "regression", "text", ("score",), (2, 5), vocabulary=20)

    with pytest.raises(UnsupportedError, match="model 'linear-softmax' for 2 texts at once: expected one text"):
        build_model("linear-softmax", spec, seed=0)
