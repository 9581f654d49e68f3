from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedstill.common.errors import ConfigError, DataError, UnsupportedError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, check_model, model_names
from fedstill.common.outputs.categorical import Categorical
from fedstill.common.seeding import torch_seeded
from fedstill.common.task import TaskSpec

transformers: Any = pytest.importorskip("transformers")

SPEC = TaskSpec("t", "categorical", "text", ("a", "b", "c"), (6,), vocabulary=31, tokenizer="abc")
TOKENS = torch.tensor([[1, 2, 3, 0, 0, 0], [4, 5, 30, 7, 8, 9], [0, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert-1"
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        pad_token_id=4,
    )
    transformers.utils.logging.disable_progress_bar()
    with torch_seeded(1, "tiny BERT"):
        transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def theirs(folder: Path, tokens: Tensor) -> Tensor:
    """States by the library itself, from its own ids."""
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    states: Tensor = model(input_ids=tokens - 1, attention_mask=torch.ones_like(tokens)).last_hidden_state.detach()
    return states


def test_states_are_those_of_the_folders_weights(bert: Path) -> None:
    model = build_model(f"hf-{bert}", SPEC, seed=1).eval()

    states = model.body(TOKENS)

    assert states.shape == (3, 6, 16)
    torch.testing.assert_close(states[0, :3], theirs(bert, TOKENS[:1, :3])[0])
    torch.testing.assert_close(states[1], theirs(bert, TOKENS[1:2])[0])
    assert not states[0, 3:].any()
    assert not states[2].any()
    # Texts of texts are read one by one.
    torch.testing.assert_close(model.body(TOKENS.unsqueeze(0))[0], states)


def test_the_seed_decides_the_head_alone(bert: Path) -> None:
    one, again, other = (build_model(f"hf-{bert}", SPEC, seed=seed).state_dict() for seed in (1, 1, 2))

    assert all(torch.equal(one[key], again[key]) for key in one)
    assert {key.partition(".")[0] for key in one if not torch.equal(one[key], other[key])} == {"head"}


@pytest.mark.parametrize(
    ("output", "shape", "answer"),
    [("categorical", (6,), (2, 3)), ("token-level", (6,), (2, 6, 3)), ("categorical", (2, 6), (2, 3))],
)
def test_every_head_can_be_trained(bert: Path, output: str, shape: tuple[int, ...], answer: tuple[int, ...]) -> None:
    spec = replace(SPEC, output=output, input_shape=shape, positions=(6,) if output == "token-level" else ())
    model = build_model(f"hf-{bert}", spec, seed=1)
    tokens = torch.arange(1, 1 + 2 * torch.Size(shape).numel()).reshape(2, *shape)

    assert predict(model, tokens, training=Training()).shape == answer


def test_training_changes_the_pretrained_weights(bert: Path) -> None:
    model = build_model(f"hf-{bert}", SPEC, seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    tokens = TOKENS[:2].repeat(8, 1)
    training = Training(learning_rate=1e-2)
    fit(model, tokens, (torch.tensor([0, 1] * 8),), Categorical().loss, training=training, epochs=10, seed=1)

    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(".attention." in key for key in changed)
    assert predict(model, TOKENS[:2], training=training).argmax(1).tolist() == [0, 1]


def test_it_is_checked_without_its_weights(bert: Path) -> None:
    check_model(f"hf-{bert}", SPEC)
    (weights,) = bert.glob("*.safetensors")
    with pytest.raises(DataError, match=r"expected .*config\.json.*save_pretrained"):
        check_model(f"hf-{weights}", SPEC)


def test_it_is_no_model_of_a_list() -> None:
    assert not [name for name in model_names() if name.startswith("hf")]
    with pytest.raises(ConfigError, match="model 'hf': expected a known model"):
        build_model("hf", SPEC, seed=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, tokenizer=""), r"with hashed words: expected the 30 tokens .*tokenizer\.json"),
        (replace(SPEC, vocabulary=32), "with 31 tokens: expected the 30"),
        (replace(SPEC, input_shape=(9,)), "texts of 9 tokens: expected at most 8"),
        (replace(SPEC, modality="image", input_shape=(1, 8, 8)), "of modality 'image'"),
    ],
)
def test_tasks_that_do_not_fit(bert: Path, spec: TaskSpec, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        check_model(f"hf-{bert}", spec)


def test_models_with_a_decoder(tmp_path: Path) -> None:
    transformers.T5Config(vocab_size=30, d_model=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedError, match="expected an encoder alone"):
        check_model(f"hf-{tmp_path}", SPEC)


def test_damaged_folders(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model 'hf-.*': expected .*config\.json"):
        build_model(f"hf-{tmp_path}", SPEC, seed=1)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        build_model(f"hf-{tmp_path}", SPEC, seed=1)
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    with pytest.raises(DataError, match=r"cannot be read.*safetensors"):
        build_model(f"hf-{tmp_path}", SPEC, seed=1)
    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        build_model(f"hf-{tmp_path}", SPEC, seed=1)


def test_weights_of_another_model_are_not_made_up(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    text = (bert / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))

    with pytest.raises(DataError, match=r"without 16 of its weights \(encoder\.layer\.1\..*save model and config"):
        build_model(f"hf-{tmp_path}", SPEC, seed=1)
