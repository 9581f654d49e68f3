from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from fedstill.common.data.texts import token_ids
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import build
from fedstill.common.tasks.matching import MatchingTask

HEAD = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n"


def tiny(source: Path, **options: object) -> MatchingTask:
    given = {"source": str(source), "vocabulary": 100, "length": 3, "test-share": 0.0, **options}
    task = build(MatchingTask, given, "tasks.t")
    assert isinstance(task, MatchingTask)
    return task


def test_pairs_with_scaled_scores(tmp_path: Path) -> None:
    (tmp_path / "SOURCE.txt").write_text("from nowhere")
    (tmp_path / "SICK_train.txt").write_text(HEAD + "1\tA man\tA dog runs fast\t1\n2\tNo\tYes\t4.5\n")
    (tmp_path / "SICK_trial.txt").write_text(HEAD + "3\tHi\tHi\t5.0\n")
    (tmp_path / "SICK_test_annotated.txt.gz").write_bytes(gzip.compress((HEAD + "4\tup\tdown\t3\n").encode(), mtime=0))
    data = tiny(tmp_path / "SICK_*").load(None)
    assert data.test is not None
    first, second = (
        token_ids(texts, vocabulary=100, length=3) for texts in (["A man", "No", "Hi"], ["A dog runs", "Yes", "Hi"])
    )
    assert torch.equal(data.pool.inputs, torch.stack([first, second], 1))
    assert data.pool.targets.tolist() == [[0], [0.875], [1]]
    assert data.pool.strata is not None
    assert data.pool.strata.tolist() == [0, 3, 3]
    assert data.classes == ("score",)
    assert data.vocabulary == 100
    assert data.test.inputs.shape == (1, 2, 3)
    assert data.test.targets.tolist() == [[0.5]]


def test_other_columns_and_another_scale(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("q,a,alike\n" + "".join(f"one {n},two {n},{n % 2}\n" for n in range(10)))
    options = {"first": "q", "second": "a", "score": "alike", "lowest": 0, "highest": 1, "delimiter": ","}
    data = tiny(tmp_path, **options, **{"test-share": 0.3}).load(None)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (7, 3)
    assert set(data.pool.targets.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD, "expected at least one row"),
        (HEAD + "1\ta\tb\t3\n2\ta\tb\t7\n", "'7' in row 2, column 'relatedness_score': expected a number from 1 to 5"),
        (HEAD + "1\ta\tb\tNA\n", "'NA' in row 1, column 'relatedness_score'"),
        (HEAD + "1\ta\tb\tnan\n", "'nan' in row 1"),
        (HEAD + "1\ta\tb\n", "row 1 of 3 cells: expected 4"),
        (HEAD.replace("_A", "_1") + "1\ta\tb\t3\n", "column 'sentence_A'.*did you mean 'sentence_"),
    ],
)
def test_damaged_pairs(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        tiny(tmp_path).load(None)


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text(HEAD + "1\ta\tb\t3\n")
    with pytest.raises(DataError, match="expected a file without 'test' in its name"):
        tiny(tmp_path).load(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 5}, "lowest=5.0, highest=5.0: expected lowest < highest"),
        ({"bins": 0}, "bins=0"),
        ({"delimiter": ""}, "expected one character"),
        ({"encoding": "utf-99"}, "utf-99"),
        ({"test-share": 1}, "test-share=1"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(tmp_path, **options)


def test_prepare_and_measure() -> None:
    task = MatchingTask("x")
    tokens = torch.tensor([[[1, 2], [2, 0]]])
    assert task.prepare(tokens, tokens) is tokens
    measures = task.measure(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [0.1], [0.2]]), ("score",))
    assert list(measures) == ["spearman", "pearson"]
    assert measures["spearman"] == pytest.approx(1)
    assert measures["pearson"] == pytest.approx(5 / 28**0.5)  # Σ(x−2)(y−0.1) = 0.5, norms √14 and √0.02


def test_real_sick(data_dir: Path) -> None:
    data = MatchingTask("sick/SICK_*").load(data_dir)
    assert data.test is not None
    assert data.pool.inputs.shape == (5000, 2, 32)
    assert data.test.inputs.shape == (4927, 2, 32)
    assert data.pool.strata is not None
    assert data.pool.strata.bincount().tolist() == [473, 704, 1938, 1885]
