from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from fedstill.common.data.texts import word_ids
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.outputs import IGNORE
from fedstill.common.scenario import build
from fedstill.common.tasks.tagging import TaggingTask


def tiny(source: str, **options: object) -> TaggingTask:
    task = build(TaggingTask, {"source": source, "vocabulary": 1000, "length": 4, **options}, "tasks.t")
    assert isinstance(task, TaggingTask)
    return task


def ids(*words: str) -> list[int]:
    return word_ids([words], vocabulary=1000, length=4)[0].tolist()


def test_columns(tmp_path: Path) -> None:
    (tmp_path / "SOURCE.txt").write_text("from nowhere")
    # A separator of a tab alone and a word that a reader of lines would break at, as WNUT17 has them; IOB1 and spaces.
    (tmp_path / "a-train.conll.gz").write_bytes(
        gzip.compress("Ann\tB-per\nLee\tI-per\n\t\nRome\x85\tB-loc\n7\tO\n\n\n".encode(), mtime=0)
    )
    (tmp_path / "a.b.bio").write_text("# x x O\r\nin x O\r\nRome x I-loc\r\nOslo x B-loc\r\nnow x O\r\n")
    (tmp_path / "x.test.annotated").write_text("Ann\tB-per\n")
    data = tiny(str(tmp_path), owner="file").load(None)
    assert data.test is not None
    assert data.classes == ("O", "B-loc", "I-loc", "B-per", "I-per")
    assert (data.vocabulary, data.positions) == (1000, (4,))
    assert data.pool.inputs.shape == (3, 4, 2)
    assert data.pool.inputs[..., 0].tolist() == [
        ids("ann", "lee"),
        ids("rome\x85", "7"),
        ids("#", "in", "rome", "oslo"),
    ]
    assert data.pool.inputs[0, :, 1].tolist() == ids("shape Xx", "shape Xx")
    assert data.pool.inputs[1, :, 1].tolist() == ids("shape Xx\x85", "shape d")
    assert data.pool.targets.tolist() == [[3, 4, IGNORE, IGNORE], [1, 0, IGNORE, IGNORE], [0, 0, 1, 1]]
    assert data.pool.groups == ("a-train", "a-train", "a.b")
    assert data.pool.strata is not None
    assert data.pool.strata.tolist() == [2, 1, 1]  # the kinds from 1, loc and per
    assert data.test.targets.tolist() == [[3, IGNORE, IGNORE, IGNORE]]


def test_parts(tmp_path: Path) -> None:
    for name, tag in (("train", "a"), ("dev", "b"), ("test", "c")):
        (tmp_path / f"{name}.conll").write_text(f"x\tB-{tag}\n\n" * 10)
    data = tiny(str(tmp_path), **{"parts": ["train", "validation", "test"], "test-parts": []}).load(None)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (24, 6)
    assert data.classes == ("O", "B-a", "I-a", "B-b", "I-b", "B-c", "I-c")
    assert data.pool.groups == ()
    with pytest.raises(DataError, match=r"test\.conll: label 'B-c' of row 1"):
        tiny(str(tmp_path)).load(None)
    with pytest.raises(DataError, match=r"part 'dev' of .*: expected one of test, train, validation"):
        tiny(str(tmp_path), parts=["dev"]).load(None)
    alone = tiny("train.conll", parts=["any"], **{"test-share": 0.0}).load(tmp_path)
    assert (len(alone.pool), alone.test) == (10, None)


def test_seldom_words_are_read_as_their_shape() -> None:
    task = TaggingTask("x", vocabulary=10, seldom=2)
    proxy = torch.tensor([[[3, 7], [3, 7], [4, 8], [0, 0]]])
    inputs = torch.tensor([[[3, 7], [4, 8], [5, 9], [0, 0]]])
    assert task.prepare(inputs, proxy).tolist() == [[3, 8, 9, 0]]
    every = TaggingTask("x", vocabulary=10, seldom=0)
    assert every.prepare(inputs, proxy).tolist() == [[3, 4, 5, 0]]


def test_measure() -> None:
    classes = ("O", "B-a", "I-a")
    targets = torch.tensor([[1, 2, 0, IGNORE], [0, 1, IGNORE, IGNORE]])
    said = torch.tensor([[1, 0, 0, 1], [0, 1, 2, 1]])
    logits = torch.nn.functional.one_hot(said, 3).float()
    measures = TaggingTask("x").measure(logits, targets, classes)
    # Two spans said, of two; one right. Tags: two said, three true, two right.
    assert measures == {"entity-f1": 0.5, "token-f1": pytest.approx(0.8)}
    assert list(measures) == ["entity-f1", "token-f1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ann B-per\nLee\n", r"a\.conll: line 2 'Lee': expected a word and a tag"),
        ("Ann\tper\n", "line 1 'Ann\tper': expected a word and a tag: O, B-KIND or I-KIND"),
        ("Ann\tS-per\n", "expected a word and a tag"),
        ("\n \n", "expected at least one sentence"),
        ("Ann\tO\n", "expected at least one tag other than O"),
        ("", "expected a file that is not empty"),
    ],
)
def test_damaged_columns(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(DataError, match=message):
        tiny("a.conll").load(tmp_path)


def test_wrong_bytes_and_options(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_bytes(b"Ren\xe9 B-per\n" * 3)
    with pytest.raises(DataError, match="byte 3 is no utf-8"):
        tiny("a.conll").load(tmp_path)
    assert len(tiny("a.conll", encoding="latin-1").load(tmp_path).pool) == 1
    for options, message in (
        ({"vocabulary": 1}, "vocabulary=1"),
        ({"length": 0}, "length=0"),
        ({"seldom": -1}, "seldom=-1"),
        ({"owner": "me"}, "owner='me'"),
        ({"test-share": 1.0}, "test-share"),
        ({"encoding": "utf-7.5"}, "encoding"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny("x", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected a file that ends in \.conll"):
        tiny("empty").load(tmp_path)


def test_real_wnut17(data_dir: Path) -> None:
    data = TaggingTask("wnut17", length=128).load(data_dir)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (3394, 1287)
    assert len(data.classes) == 13
    # The number of names that the authors count in both parts.
    begins = [place for place, name in enumerate(data.classes) if name.startswith("B-")]
    counts = [int(torch.isin(part.targets, torch.tensor(begins)).sum()) for part in (data.pool, data.test)]
    assert counts == [1975, 1079]
