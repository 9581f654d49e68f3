from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.errors import DataError, KnowledgeError, Reason
from fedstill.common.knowledge import (
    MOST_BEHIND,
    MOST_RELATED,
    WIDEST_FEATURES,
    Features,
    Parameters,
    Prototypes,
    Relations,
    SoftLabels,
    knowledge_from_parts,
)
from fedstill.common.labels import label_space, ordered, positions
from fedstill.common.sides import prototypes_of

GOOD: dict[str, Any] = {
    "output": "categorical",
    "classes": ("a", "b"),
    "samples": np.array([3, 1]),
    "values": np.array([[0.5, 0.5], [1, 0]], dtype=np.float32),
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ()}, Reason.CLASSES),
        ({"classes": ("a", "a")}, Reason.CLASSES),
        ({"classes": ("a", "b", "c")}, Reason.SHAPE),
        ({"samples": np.array([1, 1])}, Reason.SAMPLES),
        ({"samples": np.array([-1, 1])}, Reason.SAMPLES),
        ({"samples": np.array([1, 2], dtype=np.int32)}, Reason.SAMPLES),
        ({"samples": np.array([[1, 2]])}, Reason.SAMPLES),
        ({"samples": np.array([1])}, Reason.SHAPE),
        ({"values": np.array([[0.5, 0.5], [1, 0]])}, Reason.TYPE),
        ({"values": np.array([1, 0], np.float32)}, Reason.SHAPE),
        ({"values": np.array([[math.nan, 0.5], [1, 0]], np.float32)}, Reason.NOT_FINITE),
        ({"values": np.array([[math.inf, 0.5], [1, 0]], np.float32), "form": "logits"}, Reason.NOT_FINITE),
        ({"values": np.array([[0.5, 0.6], [1, 0]], np.float32)}, Reason.RANGE),
        ({"values": np.array([[1.5, -0.5], [1, 0]], np.float32)}, Reason.RANGE),
        ({"values": np.array([[1e30, 0], [1, 0]], np.float32), "form": "logits"}, Reason.RANGE),
        ({"values": np.array([[1e30, 0], [1, 0]], np.float32), "output": "regression"}, Reason.RANGE),
        ({"temperature": 0.0}, Reason.RANGE),
        ({"temperature": math.nan}, Reason.RANGE),
        ({"form": "votes"}, Reason.MALFORMED),
    ],
)
def test_malformed_soft_labels_are_refused(change: dict[str, Any], reason: Reason) -> None:
    SoftLabels(**GOOD)
    with pytest.raises(KnowledgeError) as caught:
        SoftLabels(**GOOD | change)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array(["x"]), Reason.TYPE),
        (np.array([None]), Reason.TYPE),
        (np.array([1j]), Reason.TYPE),
        (np.array([math.nan]), Reason.NOT_FINITE),
        (np.array([1e7]), Reason.RANGE),
        (np.array([-1e7], dtype=np.float32), Reason.RANGE),
    ],
)
def test_malformed_parameters_are_refused(array: np.ndarray[Any, Any], reason: Reason) -> None:
    with pytest.raises(KnowledgeError) as caught:
        Parameters("m", {"w": array})
    assert caught.value.reason is reason
    with pytest.raises(KnowledgeError, match="expected at least one array"):
        Parameters("m", {})


def test_every_number_type_may_be_a_weight() -> None:
    kinds = ("float16", "float32", "float64", "int64", "uint8")
    parameters = Parameters("m", {kind: np.ones((), dtype=kind) for kind in kinds} | {"none": np.zeros(0, np.float16)})
    assert parameters.layout() == {kind: ((), kind) for kind in kinds} | {"none": ((0,), "float16")}


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["categorical", "multi-label", "regression"]),
    st.sampled_from(["probabilities", "logits"]),
    st.floats(0.1, 10),
)
def test_soft_labels_are_their_parts(seed: int, output: str, form: Any, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    size, classes = int(rng.integers(0, 5)), int(rng.integers(1, 4))
    labels = SoftLabels(
        output,
        tuple(f"c{number}" for number in range(classes)),
        rng.choice(100, size, replace=False).astype(np.int64),
        rng.dirichlet(np.ones(classes), size).astype(np.float32),
        temperature,
        form,
    )
    again = knowledge_from_parts(labels.kind, labels.header(), labels.arrays())
    assert isinstance(again, SoftLabels)
    assert again.header() == labels.header()
    np.testing.assert_array_equal(again.values, labels.values)
    np.testing.assert_array_equal(again.samples, labels.samples)


def distances(*values: float) -> np.ndarray[Any, Any]:
    """A symmetric matrix from the numbers above its diagonal."""
    count = int((1 + math.sqrt(1 + 8 * len(values))) / 2)
    matrix = np.zeros((count, count), np.float32)
    matrix[np.triu_indices(count, 1)] = values
    return matrix + matrix.T


def cell(row: int, column: int, value: float) -> np.ndarray[Any, Any]:
    matrix = distances(0.5, 1.0, 1.5)
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples": np.array([1, 1, 2])}, Reason.SAMPLES),
        ({"samples": np.array([1, 2])}, Reason.SHAPE),
        ({"values": distances(0.5, 1.0, 1.5)[:2]}, Reason.SHAPE),
        ({"values": distances(0.5, 1.0, 1.5)[None]}, Reason.SHAPE),
        ({"values": distances(0.5, 1.0, 1.5).astype(np.float64)}, Reason.TYPE),
        ({"values": distances(0.5, math.nan, 1.5)}, Reason.NOT_FINITE),
        ({"values": distances(0.5, math.inf, 1.5)}, Reason.NOT_FINITE),
        ({"values": distances(-1.0, 1.0, 3.0)}, Reason.RANGE),  # their mean is 1
        ({"values": distances(5.0, 10.0, 15.0)}, Reason.RANGE),
        ({"values": distances(1.5, 1.5, 1.5)}, Reason.RANGE),
        ({"values": distances(0.05, 0.1, 0.15)}, Reason.RANGE),
        ({"values": cell(0, 1, 0.505)}, Reason.RANGE),  # its counterpart is 0.5
        ({"values": cell(0, 0, 0.001)}, Reason.RANGE),
    ],
)
def test_malformed_relations_are_refused(change: dict[str, Any], reason: Reason) -> None:
    good = {"samples": np.array([3, 1, 2]), "values": distances(0.5, 1.0, 1.5)}
    Relations(**good)
    with pytest.raises(KnowledgeError) as caught:
        Relations(**good | change)
    assert caught.value.reason is reason


def test_relations_of_one_place_and_of_few_samples() -> None:
    for values in (distances(0, 0, 0), distances(1), np.zeros((1, 1), np.float32), np.zeros((0, 0), np.float32)):
        Relations(np.arange(len(values)), values)
    count = MOST_RELATED + 1
    with pytest.raises(KnowledgeError, match=f"at most {MOST_RELATED} .lower proxy.per-round"):
        Relations(np.arange(count), np.broadcast_to(np.float32(0), (count, count)))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 2), np.float32), Reason.SHAPE),
        (np.zeros(2, np.float32), Reason.SHAPE),
        (np.zeros((2, 0), np.float32), Reason.SHAPE),
        (np.zeros((2, 3, 4), np.float32), Reason.SHAPE),
        (np.zeros((2, WIDEST_FEATURES + 1), np.float32), Reason.SHAPE),
        (np.zeros((2, 3), np.float16), Reason.TYPE),
        (np.full((2, 3), math.nan, np.float32), Reason.NOT_FINITE),
        (np.full((2, 3), -1e5, np.float32), Reason.RANGE),
    ],
)
def test_malformed_features_are_refused(values: np.ndarray[Any, Any], reason: Reason) -> None:
    Features(np.array([5, 3]), np.full((2, WIDEST_FEATURES), -1e4, np.float32))
    with pytest.raises(KnowledgeError) as caught:
        Features(np.array([5, 3]), values)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "knowledge",
    [
        Relations(np.array([3, 1, 2]), distances(0.5, 1.0, 1.5)),
        Features(np.array([3, 1]), np.array([[1, -2, 3], [4, 5, 6]], np.float32)),
    ],
    ids=lambda knowledge: str(knowledge.kind),
)
def test_relations_and_features_are_their_parts(knowledge: Relations | Features) -> None:
    again = knowledge_from_parts(knowledge.kind, knowledge.header(), knowledge.arrays())
    assert type(again) is type(knowledge)
    for name, array in knowledge.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    with pytest.raises(KnowledgeError, match="expected 'samples' among them"):
        knowledge_from_parts(knowledge.kind, {}, {"values": knowledge.values})


def test_parameters_are_their_parts() -> None:
    parameters = Parameters("mlp-small", {"w": np.ones((2, 3), np.float32), "n": np.array(7)})
    again = knowledge_from_parts(parameters.kind, parameters.header(), parameters.arrays())
    assert isinstance(again, Parameters)
    assert again.model == "mlp-small"
    assert again.layout() == parameters.layout()


@pytest.mark.parametrize("missing", ["classes", "form", "temperature"])
def test_a_header_without_a_part_is_refused(missing: str) -> None:
    labels = SoftLabels(**GOOD)
    header = {key: value for key, value in labels.header().items() if key != missing}
    with pytest.raises(KnowledgeError):
        SoftLabels.from_parts(header, labels.arrays())


def test_unknown_kinds_and_missing_arrays() -> None:
    labels = SoftLabels(**GOOD)
    with pytest.raises(
        KnowledgeError, match="soft-labels or relations or features or prototypes or embeddings or parameters"
    ):
        knowledge_from_parts("gossip", labels.header(), labels.arrays())
    with pytest.raises(KnowledgeError, match="expected 'values' among them"):
        SoftLabels.from_parts(labels.header(), {"samples": labels.samples})


class TestPrototypes:
    GOOD = Prototypes(
        classes=("a", "b"),
        counts=np.array([2, 1]),
        features=np.array([[1, 2], [3, 4]], np.float32),
        predictions=np.array([[0.5, 0.5], [0, 1]], np.float32),
        columns=("a", "b"),
        round=3,
    )
    NOTHING: ClassVar[Any] = np.zeros((2, 0), np.float32)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"classes": ()}, Reason.CLASSES),
            ({"classes": ("a", "a")}, Reason.CLASSES),
            ({"classes": ("a", "b", "c")}, Reason.SHAPE),
            ({"columns": ("b", "b")}, Reason.CLASSES),
            ({"columns": ("a",)}, Reason.SHAPE),
            ({"columns": ()}, Reason.SHAPE),
            ({"counts": np.array([1])}, Reason.SHAPE),
            ({"counts": np.array([[1, 2]])}, Reason.SHAPE),
            ({"counts": np.array([0, 1])}, Reason.RANGE),
            ({"counts": np.array([1, 2 * int(MOST_BEHIND)])}, Reason.RANGE),
            ({"counts": np.array([1, 2], np.int32)}, Reason.TYPE),
            ({"features": np.zeros((2, 2))}, Reason.TYPE),
            ({"features": np.zeros(2, np.float32)}, Reason.SHAPE),
            ({"features": np.zeros((2, 2, 2), np.float32)}, Reason.SHAPE),
            ({"features": np.zeros((2, WIDEST_FEATURES + 1), np.float32)}, Reason.SHAPE),
            ({"features": np.full((2, 2), np.nan, np.float32)}, Reason.NOT_FINITE),
            ({"features": np.full((2, 2), 1e5, np.float32)}, Reason.RANGE),
            ({"predictions": np.full((2, 2), 0.6, np.float32)}, Reason.RANGE),
            ({"predictions": np.full((2, 2), np.nan, np.float32)}, Reason.NOT_FINITE),
            ({"predictions": np.array([[1.5, -0.5]] * 2, np.float32)}, Reason.RANGE),
            (
                {
                    "features": np.zeros((2, 0), np.float32),
                    "predictions": np.zeros((2, 0), np.float32),
                    "columns": (),
                },
                Reason.SHAPE,
            ),
        ],
    )
    def test_malformed_ones_are_refused(self, change: dict[str, Any], reason: Reason) -> None:
        with pytest.raises(KnowledgeError) as caught:
            replace(self.GOOD, **change)
        assert caught.value.reason is reason

    @pytest.mark.parametrize(
        "told",
        [GOOD, replace(GOOD, features=NOTHING), replace(GOOD, predictions=NOTHING, columns=())],
    )
    def test_they_are_their_parts(self, told: Prototypes) -> None:
        back = knowledge_from_parts("prototypes", told.header(), told.arrays())
        assert isinstance(back, Prototypes)
        assert back.header() == told.header()
        assert back.arrays().keys() == told.arrays().keys()
        for name, array in told.arrays().items():
            np.testing.assert_array_equal(back.arrays()[name], array)

    def test_what_is_missing_is_named(self) -> None:
        header, arrays = self.GOOD.header(), dict(self.GOOD.arrays())
        for name in header:
            with pytest.raises(KnowledgeError, match="expected classes, columns and round"):
                knowledge_from_parts("prototypes", {key: header[key] for key in header if key != name}, arrays)
        with pytest.raises(KnowledgeError, match="expected 'counts' among them"):
            knowledge_from_parts("prototypes", header, {key: arrays[key] for key in arrays if key != "counts"})
        with pytest.raises(KnowledgeError, match="expected a row for each class"):
            knowledge_from_parts("prototypes", header, arrays | {"features": np.array(1, np.float32)})
        with pytest.raises(KnowledgeError, match="Features: expected Prototypes"):
            prototypes_of(Features(np.array([0]), np.ones((1, 1), np.float32)))


def test_label_spaces_are_names() -> None:
    assert label_space(["cat", "dog"]) == ("cat", "dog")
    for names, message in (([], "at least one"), (["a", ""], "no empty"), (["a", "b", "a"], "with a twice")):
        with pytest.raises(DataError, match=message):
            label_space(names)


def test_positions_and_order_go_by_name() -> None:
    assert positions(("c", "a"), ("a", "b", "c")).tolist() == [2, 0]
    assert ordered(["c", "x", "a"], ("a", "b", "c")) == ("a", "c")
    with pytest.raises(KnowledgeError, match="did you mean 'zebra'") as caught:
        positions(("zebar",), ("ant", "zebra"))
    assert caught.value.reason is Reason.CLASSES
