from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.client.card import Card, Origin
from fedstill.client.predicting.answers import LEAST, answers, found_objects, sigmoid, softmax
from fedstill.common.data.boxes import found_boxes
from fedstill.common.data.vocabulary import MARKS
from fedstill.common.errors import UnsupportedError
from fedstill.common.outputs import output_kind
from fedstill.common.outputs.dense import GEOMETRY
from fedstill.common.outputs.sequence import hypotheses

ORIGIN = Origin("0", "run", "client", 1, "", "")
CARD = Card(
    task="t",
    kind="k",
    output="categorical",
    modality="tabular",
    classes=("a", "b", "c"),
    input_shape=(3,),
    input_type="float32",
    vocabulary=0,
    positions=(),
    model="mlp-small",
    parameters=1,
    origin=ORIGIN,
    format="onnx",
    precision="fp32",
    file="model.onnx",
    files={},
)


def told(card: Card, outputs: Any, *, raw: Any = None, inputs: Any = None, top: int = 3) -> list[dict[str, Any]]:
    rows = np.array(outputs, np.float32)
    read = np.zeros((len(rows), 3)) if raw is None else np.array(raw)
    found = answers(card, rows, raw=read, inputs=read if inputs is None else np.array(inputs), top=top)
    return [one.table() for one in found]


@pytest.mark.parametrize("output", ["categorical", "multi-label"])
def test_probabilities_are_those_of_the_output_kind(output: str) -> None:
    logits = np.random.default_rng(0).standard_normal((9, 4, 5)).astype(np.float32) * 8
    wanted = output_kind(output).soften(torch.from_numpy(logits).double(), 1.0).numpy()
    np.testing.assert_allclose((softmax if output == "categorical" else sigmoid)(logits), wanted, atol=1e-12)


def test_large_numbers_are_no_error() -> None:
    assert softmax(np.array([[1e5, -1e5]], np.float32)).tolist() == [[1.0, 0.0]]
    assert sigmoid(np.array([1e5, -1e5], np.float32)).tolist() == [1.0, 0.0]


def test_one_class() -> None:
    # exp(ln 6) : exp(ln 3) : exp(0) = 0.6 : 0.3 : 0.1.
    [one] = told(CARD, [[np.log(3), np.log(6), 0.0]], top=2)
    assert one["label"] == "b"
    assert one["probability"] == pytest.approx(0.6)
    assert one["top"] == [
        {"label": "b", "probability": pytest.approx(0.6)},
        {"label": "a", "probability": pytest.approx(0.3)},
    ]


def test_several_classes_at_once() -> None:
    card = replace(CARD, output="multi-label")
    first, second = told(card, [[np.log(4), -1.0, 0.0], [-1.0, -2.0, -3.0]])
    assert (first["label"], first["probability"]) == ("a, c", pytest.approx(0.5))
    assert first["top"][0] == {"label": "a", "probability": pytest.approx(0.8)}
    assert (second["label"], second["probability"]) == ("", None)


def test_numbers_on_their_scale() -> None:
    card = replace(CARD, output="regression", classes=("score",), scale=(1.0, 5.0))
    assert told(card, [[0.25], [1.0]]) == [
        {"label": "2", "probability": None, "values": {"score": 2.0}},
        {"label": "5", "probability": None, "values": {"score": 5.0}},
    ]


def test_candidates() -> None:
    card = replace(CARD, output="ranking")
    [one] = told(card, [[0.0, np.log(3), 0.0]])
    assert (one["label"], one["probability"]) == ("b", pytest.approx(0.6))
    # Who has rated b and c is recommended a; who has rated all, nothing.
    fresh = replace(card, new_only=True)
    rated, all_ = told(fresh, [[0.0, 9.0, 0.0]] * 2, raw=[[0, 4, 2], [5, 5, 5]])
    assert (rated["label"], rated["probability"], len(rated["top"])) == ("a", 1.0, 1)
    assert all_ == {"label": "", "probability": None, "top": []}


def test_a_label_for_each_token() -> None:
    card = replace(CARD, output="token-level", classes=("O", "B-x"), positions=(3,))
    [one] = told(card, [[[0, np.log(3)], [0, 0], [9, 9]]], inputs=[[4, 5, 0]])
    assert (one["label"], one["probability"]) == ("B-x O", pytest.approx((0.75 + 0.5) / 2))
    assert one["tokens"][0] == {"label": "B-x", "probability": pytest.approx(0.75)}
    [empty] = told(card, [[[0, 0]] * 3], inputs=[[0, 0, 0]])
    assert empty == {"label": "", "probability": None, "tokens": []}


def test_position_0_answers_what_is_its_own() -> None:
    card = replace(CARD, output="token-level", classes=("play", "stop", "O", "B-x"), positions=(3,))
    outputs = [[[0, 1, 9, 9], [9, 9, 1, 0], [9, 9, 0, 1]]]
    [both] = told(replace(card, lead=2), outputs, inputs=[[7, 4, 5]])
    assert both["label"] == "stop O B-x"
    # exp(1) / (1 + exp(1)) each: the other classes' numbers count for nothing.
    assert both["probability"] == pytest.approx(np.e / (1 + np.e))
    [tags] = told(replace(card, lead=0), outputs, inputs=[[7, 4, 5]])
    assert tags["label"] == "play play"


def test_objects_are_those_of_the_task() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((6, 5, 7, 2 + len(GEOMETRY))).astype(np.float32)
    wanted = found_boxes(torch.from_numpy(maps))
    for image, one in enumerate(maps):
        mine = wanted.image == image
        kept = mine & (wanted.score >= LEAST)
        order = np.argsort(-wanted.score[kept], kind="stable")
        found = list(found_objects(one))
        assert [label for label, _, _ in found] == wanted.label[kept][order].tolist()
        np.testing.assert_allclose([chance for _, chance, _ in found], wanted.score[kept][order], rtol=1e-6)
        boxes = np.concatenate([wanted.corner[kept], wanted.size[kept]], 1)[order]
        np.testing.assert_allclose([box for _, _, box in found], boxes, rtol=1e-6, atol=1e-9)


def test_objects_as_answers() -> None:
    card = replace(CARD, output="dense", classes=("disc", *GEOMETRY), positions=(2, 2))
    maps = np.full((1, 2, 2, 5), -9.0)
    maps[0, 1, 0] = [np.log(4), 0.0, np.log(2), 0.5, 0.25]
    [one] = told(card, maps)
    assert (one["label"], one["probability"]) == ("disc", pytest.approx(0.8))
    # One cell wide and two high, its centre half a cell from the left and a cell and a quarter from the upper edge.
    assert one["objects"][0]["box"] == pytest.approx([0.0, 0.125, 0.5, 1.0])
    [nothing] = told(card, np.full((1, 2, 2, 5), -9.0))
    assert nothing == {"label": "", "probability": None, "objects": []}


def test_a_text_that_is_written() -> None:
    card = replace(CARD, output="sequence", classes=(*MARKS, "▁good", "▁mor", "ning"), positions=(4,))
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 4, 7)).astype(np.float32)
    logits[0] = np.eye(7)[[5, 6, 2, 4]] * np.log(4)
    [first, *_] = told(card, logits)
    assert first["label"] == "morning"
    # Three tokens with the end mark, each with 4 / (4 + 6).
    assert first["probability"] == pytest.approx(0.4)
    for row, one in zip(hypotheses(torch.from_numpy(logits)).tolist(), told(card, logits), strict=True):
        words = [card.classes[token] for token in row if token > 2 or token == 3]
        assert one["label"] == "".join(words).replace("▁", " ").strip()


def test_an_output_kind_that_is_not_known() -> None:
    with pytest.raises(UnsupportedError, match="answers of output kind 'spells': expected one of categorical"):
        told(replace(CARD, output="spells"), [[0.0]])
