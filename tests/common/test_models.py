from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedstill.common.errors import ConfigError, UnsupportedError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, model_names, parameter_count
from fedstill.common.outputs.categorical import Categorical
from fedstill.common.registry import MODELS
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec

VOCABULARY = 50
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "image": ((1, 8, 8), (1, 28, 28), (3, 32, 32)),
    "tabular": ((5,), (30,)),
    "text": ((1,), (12,)),
}
EVERY = [
    (name, modality, shape)
    for modality, shapes in SHAPES.items()
    for shape in shapes
    for name in model_names(modality, "categorical")
]


def spec(modality: str, shape: tuple[int, ...], classes: int = 3, vocabulary: int = VOCABULARY) -> TaskSpec:
    words = vocabulary if modality == "text" else 0
    return TaskSpec("t", "categorical", modality, tuple(map(str, range(classes))), shape, words)


def some_inputs(modality: str, shape: tuple[int, ...], count: int) -> Tensor:
    generator = torch_rng(3, "inputs")
    if modality == "text":
        return torch.randint(0, VOCABULARY, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("cnn-small", (1, 28, 28), 80_602),
        ("cnn-small", (1, 8, 8), 11_482),
        ("cnn-small", (3, 32, 32), 103_930),
        ("cnn-medium", (1, 28, 28), 572_698),
        ("cnn-large", (1, 28, 28), 1_663_370),  # McMahan et al. 2017, section 3
        ("resnet-8", (3, 32, 32), 75_290),
        ("resnet-8", (1, 28, 28), 75_002),
        ("resnet-20", (3, 32, 32), 269_722),  # He et al. 2016, table 6: 0.27 million
        ("mlp-small", (1, 28, 28), 50_890),
        ("mlp-medium", (1, 28, 28), 199_210),  # McMahan et al. 2017, section 3
        ("mlp-large", (1, 28, 28), 669_706),
        ("linear-softmax", (1, 28, 28), 7_850),
    ],
)
def test_weights_of_image_models_with_ten_classes(name: str, shape: tuple[int, ...], count: int) -> None:
    assert parameter_count(build_model(name, spec("image", shape, 10), seed=1)) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bag-small", 264_516),
        ("bag-large", 1_082_628),
        ("textcnn-small", 274_916),
        ("textcnn-large", 1_203_680),
        ("linear-softmax", 32_772),
    ],
)
def test_weights_of_text_models_with_four_classes_and_8192_tokens(name: str, count: int) -> None:
    assert parameter_count(build_model(name, spec("text", (64,), 4, 8192), seed=1)) == count


def test_weights_of_tabular_models() -> None:
    assert parameter_count(build_model("mlp-small", spec("tabular", (30,), 2), seed=1)) == 2_114
    assert parameter_count(build_model("linear-softmax", spec("tabular", (30,), 2), seed=1)) == 62


@pytest.mark.parametrize(("name", "modality", "shape"), EVERY)
def test_outputs_are_finite_scores_of_each_class(name: str, modality: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, spec(modality, shape), seed=1)
    logits = predict(model, some_inputs(modality, shape, 4), training=Training())
    assert logits.shape == (4, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("name", "modality", "shape"), [(n, m, s) for n, m, s in EVERY if s == SHAPES[m][0]])
def test_seed_decides_the_weights(name: str, modality: str, shape: tuple[int, ...]) -> None:
    task = spec(modality, shape)
    state = torch.get_rng_state()
    first, again, other = (build_model(name, task, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    if (name, modality) != ("linear-softmax", "text"):  # begins at 0
        assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("name", "modality", "shape"), EVERY)
def test_every_number_of_a_model_is_a_weight(name: str, modality: str, shape: tuple[int, ...]) -> None:
    # No running statistics of private inputs, as BatchNorm has them.
    model = build_model(name, spec(modality, shape), seed=1)
    assert set(model.state_dict()) == {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "modality", "shape"), [(n, m, s) for n, m, s in EVERY if s == SHAPES[m][0]])
def test_training_lowers_the_loss(name: str, modality: str, shape: tuple[int, ...], precision: str) -> None:
    training = Training(batch_size=16, learning_rate=5e-3, precision="bf16" if precision == "bf16" else "fp32")
    inputs = some_inputs(modality, shape, 48)
    # A class that the inputs tell: a token's number, or the sign of the first number.
    flat = inputs.flatten(1)[:, 0]
    targets = flat % 3 if modality == "text" else (flat > 0).long()
    model = build_model(name, spec(modality, shape), seed=1)
    kind = Categorical()
    before = float(kind.loss(predict(model, inputs, training=training), targets))
    for seed in range(2):
        fit(model, inputs, (targets,), kind.loss, training=training, epochs=6, seed=seed)
    after = float(kind.loss(predict(model, inputs, training=training), targets))
    assert after < 0.9 * before


@pytest.mark.parametrize("name", ["bag-small", "bag-large", "linear-softmax"])
def test_padding_tells_nothing_to_models_that_count_words(name: str) -> None:
    model = build_model(name, spec("text", (4,)), seed=1)
    short, padded = torch.tensor([[5, 9]]), torch.tensor([[5, 9, 0, 0]])
    assert torch.equal(model(short), model(padded))


def test_an_empty_text_has_finite_scores() -> None:
    for name in model_names("text"):
        model = build_model(name, spec("text", (4,)), seed=1)
        assert predict(model, torch.zeros(2, 4, dtype=torch.int64), training=Training()).isfinite().all()


@pytest.mark.parametrize("name", ["cnn-smal", "cnn", "small", "", "cnn-small-", "resnet-18"])
def test_unknown_model_names_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a known model \((did you mean|known:)"):
        build_model(name, spec("image", (1, 8, 8)), seed=1)


def test_misspelt_model() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cnn-small'"):
        build_model("cnn-smal", spec("image", (1, 8, 8)), seed=1)


@pytest.mark.parametrize(
    ("name", "modality", "shape"),
    [("cnn-small", "text", (4,)), ("cnn-small", "tabular", (4,)), ("bag-small", "image", (1, 8, 8))],
)
def test_model_that_cannot_read_the_inputs(name: str, modality: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match=f"of modality '{modality}'.*expected one of .*such as"):
        build_model(name, spec(modality, shape), seed=1)


def test_images_too_small_for_two_poolings() -> None:
    with pytest.raises(UnsupportedError, match="3 × 9: expected at least 4 × 4"):
        build_model("cnn-small", spec("image", (1, 3, 9)), seed=1)


def test_text_task_without_a_vocabulary() -> None:
    with pytest.raises(UnsupportedError, match="vocabulary of 0"):
        build_model("bag-small", spec("text", (4,), vocabulary=0), seed=1)


def test_every_family_describes_its_sizes() -> None:
    for name, family in MODELS.all().items():
        assert family.name == name
        assert family.sizes or name == "hf"  # whose sizes are paths
        assert all(isinstance(line, str) and line for line in family.sizes.values())
        assert family.modalities <= {"image", "speech", "tabular", "text", "translation"}


def test_names_go_from_small_to_large() -> None:
    assert model_names("tabular") == (
        *("autoencoder-small", "autoencoder-large"),
        "linear-softmax",
        *("mlp-small", "mlp-medium", "mlp-large"),
    )
    assert len(set(model_names())) == len(model_names()) == 24
