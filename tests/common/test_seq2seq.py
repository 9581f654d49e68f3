from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedstill.common.errors import UnsupportedError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, check_model, parameter_count
from fedstill.common.network import Network
from fedstill.common.outputs.sequence import END, PAD, START, Sequence, hypotheses
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec

SPEC = TaskSpec("t", "sequence", "translation", tuple("pse345678"), (9,), vocabulary=12, positions=(5,))
"""Four source tokens of 1 to 11, and five steps over nine target tokens."""

KIND = Sequence()


def sentences(count: int) -> tuple[Tensor, Tensor]:
    """Sources of one to four tokens, and their tokens in turn, each called by another name, as targets."""
    rng = torch_rng(0, "sentences")
    words = torch.randint(1, 7, (count, 4), generator=rng)
    words = words * (torch.arange(4) < torch.randint(1, 5, (count, 1), generator=rng))
    targets = torch.zeros(count, 5, dtype=torch.int64)
    for row, sentence in zip(targets, words, strict=True):
        told = [word + 2 for word in sentence.tolist() if word]
        row[: len(told) + 1] = torch.tensor([*told, END])
    return torch.cat([words, torch.zeros(count, 5, dtype=torch.int64)], 1), targets


def model(name: str = "seq2seq-small", spec: TaskSpec = SPEC, seed: int = 1) -> Network:
    return build_model(name, spec, seed=seed)


def test_weights_by_hand() -> None:
    recurrent = 3 * (64 * 128 + 64 * 64 + 2 * 64)
    encoder = 1000 * 128 + 2 * recurrent
    decoder = 1000 * 128 + 1000 + (128 * 128 + 128) + 3 * (128 * 128 * 2 + 2 * 128) + (256 * 128 + 128)
    spec = replace(SPEC, classes=tuple(map(str, range(1000))), vocabulary=1000)
    assert parameter_count(model(spec=spec)) == encoder + decoder == 479_976


def test_it_writes_what_it_was_told_of_itself() -> None:
    # With its own words before it, a model says what it said when it wrote them.
    inputs, _ = sentences(6)
    network = model()
    alone = predict(network, inputs, training=Training())
    assert alone.shape == (6, 5, 9)
    tokens = alone.argmax(-1)
    prefix = torch.cat([torch.full((6, 1), START), tokens[:, :-1]], 1)
    forced = predict(network, torch.cat([inputs[:, :4], prefix], 1), training=Training())
    before_the_end = (prefix != END) & (prefix != PAD)
    torch.testing.assert_close(forced[before_the_end], alone[before_the_end])
    assert not forced[~before_the_end].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_to_translate(precision: str) -> None:
    inputs, targets = sentences(128)
    network = model()
    training = Training(batch_size=16, learning_rate=5e-3, precision="bf16" if precision == "bf16" else "fp32")
    forced = KIND.forced(inputs, targets)
    fit(network, forced, (targets,), KIND.loss, training=training, epochs=10, seed=1)
    written = hypotheses(predict(network, inputs, training=training))
    assert (written == targets).all(1).double().mean() > 0.9


def test_a_student_learns_from_soft_labels_what_the_teacher_wrote() -> None:
    inputs, targets = sentences(128)
    teacher, student = model(), model("seq2seq-small", seed=2)
    training = Training(batch_size=16, learning_rate=5e-3)
    fit(teacher, KIND.forced(inputs, targets), (targets,), KIND.loss, training=training, epochs=4, seed=1)
    soft = KIND.blank(KIND.soften(predict(teacher, inputs, training=training), 1.0), inputs)
    KIND.check(soft)

    def distillation(logits: Tensor, labels: Tensor) -> Tensor:
        return KIND.divergence(logits, labels, 1.0).mean()

    fit(student, KIND.forced(inputs, soft), (soft,), distillation, training=training, epochs=16, seed=2)
    told = hypotheses(predict(student, inputs, training=training))
    assert (told == hypotheses(soft)).all(1).double().mean() > 0.9


def test_padding_tells_nothing() -> None:
    inputs, _ = sentences(4)
    wide = torch.cat([inputs[:, :4], torch.zeros(4, 3, dtype=torch.int64), inputs[:, 4:]], 1)
    one, other = model(), model(spec=replace(SPEC, input_shape=(12,)))
    torch.testing.assert_close(predict(one, inputs, training=Training()), predict(other, wide, training=Training()))


def test_an_empty_sentence_has_finite_outputs() -> None:
    assert predict(model(), torch.zeros(2, 9, dtype=torch.int64), training=Training()).isfinite().all()


def test_features_are_those_of_the_sentence() -> None:
    inputs, targets = sentences(4)
    network = model().eval()
    assert network.features(inputs).shape == (4, 128)
    assert torch.equal(network.features(inputs), network.features(KIND.forced(inputs, targets)))


def test_the_encoder_is_the_same_whatever_it_is_translated_to() -> None:
    other = replace(SPEC, classes=tuple("pse3"), input_shape=(11,), positions=(7,))
    ours, theirs = model().body.state_dict(), model(spec=other).body.state_dict()
    assert {name: array.shape for name, array in ours.items()} == {name: array.shape for name, array in theirs.items()}
    shared = model(spec=other)
    shared.body.load_state_dict(ours)
    inputs = torch.cat([sentences(4)[0], torch.zeros(4, 2, dtype=torch.int64)], 1)
    assert predict(shared, inputs, training=Training()).shape == (4, 7, 4)


def test_seed_decides_the_weights() -> None:
    first, again, other = (model(seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_nothing_to_learn_in_the_inputs() -> None:
    inputs, targets = sentences(4)
    with pytest.raises(UnsupportedError, match=r"a translation to learn that is not in the inputs.*OutputKind\.forced"):
        fit(model(), inputs, (targets,), KIND.loss, training=Training(), epochs=1, seed=1)


@pytest.mark.parametrize(
    "spec", [replace(SPEC, positions=(9,)), replace(SPEC, vocabulary=0), replace(SPEC, input_shape=(2, 9))]
)
def test_inputs_that_are_no_sentences(spec: TaskSpec) -> None:
    with pytest.raises(UnsupportedError, match="expected token ids of a sentence and then of its translation"):
        check_model("seq2seq-small", spec)
    assert PAD == 0
