from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.errors import DataError, KnowledgeError, Reason
from fedstill.common.knowledge import Parameters, SoftLabels, knowledge_from_parts
from fedstill.common.labels import label_space, ordered, positions

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
    with pytest.raises(KnowledgeError, match="expected soft-labels or parameters"):
        knowledge_from_parts("gossip", labels.header(), labels.arrays())
    with pytest.raises(KnowledgeError, match="expected 'values' among them"):
        SoftLabels.from_parts(labels.header(), {"samples": labels.samples})


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
