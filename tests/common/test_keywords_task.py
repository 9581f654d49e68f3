from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from fedstill.common.data.texts import token_ids
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.outputs import IGNORE
from fedstill.common.scenario import build
from fedstill.common.tasks.keywords import KeywordsTask


def tiny(source: Path, **options: object) -> KeywordsTask:
    given = {"source": str(source), "vocabulary": 100, "length": 8, "test-share": 0.0, **options}
    task = build(KeywordsTask, given, "tasks.t")
    assert isinstance(task, KeywordsTask)
    return task


def corpus(folder: Path, **documents: tuple[str, str]) -> Path:
    """A corpus of ID = (text, key phrases)."""
    for name in ("docsutf8", "keys"):
        (folder / name).mkdir(parents=True)
    for number, (text, keys) in documents.items():
        (folder / "docsutf8" / f"{number}.txt").write_text(text)
        (folder / "keys" / f"{number}.key").write_text(keys)
    return folder


def test_documents_of_two_corpora(tmp_path: Path) -> None:
    corpus(tmp_path / "b", one=("\ufeffA Graph, a graph cut!", "Graph\nnowhere\n\n"), empty=(" ", "x"))
    (tmp_path / "SOURCE.txt").write_text("from nowhere")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/docsutf8/1.txt", "deep nets")
        archive.writestr("a/keys/1.key", "deep  \tnets\r\n")
        archive.writestr("a/language.txt", "EN")
    data = tiny(tmp_path).load(None)
    assert data.classes == ("O", "B-keyword", "I-keyword")
    assert data.pool.groups == ("a", "b")
    assert (data.vocabulary, data.positions, data.test) == (100, (8,), None)
    assert torch.equal(data.pool.inputs, token_ids(["deep nets", "a graph , a graph cut !"], vocabulary=100, length=8))
    # The second "graph" has no label; the phrase that is nowhere leaves no trace.
    assert data.pool.targets.tolist() == [[1, 2, *[IGNORE] * 6], [0, 1, 0, 0, IGNORE, 0, 0, IGNORE]]
    assert data.pool.strata is not None
    assert data.pool.strata.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "keys", "tags"),
    [
        # The longer of two phrases that overlap, and the shorter one where it stands alone.
        ("oxide layer on oxide", "oxide\noxide layer", [1, 2, 0, 1]),
        ("oxide layer", "oxide\noxide layer", [1, 2]),
        ("a b c", "b c\na b", [1, 2, 0]),
        # Again: no label, and no place for another phrase.
        ("a b a b b", "a b\nb", [1, 2, IGNORE, IGNORE, 1]),
        # Only what stands in the words that are read.
        ("1 2 3 4 5 6 7 a b", "a b\nb", [0] * 8),
        ("x", "longer than the text", [0]),
    ],
)
def test_where_phrases_stand(tmp_path: Path, text: str, keys: str, tags: list[int]) -> None:
    corpus(tmp_path / "c", one=(text, keys))
    targets = tiny(tmp_path / "c").load(None).pool.targets
    assert targets.tolist() == [tags + [IGNORE] * (8 - len(tags))]


def test_test_part(tmp_path: Path) -> None:
    corpus(tmp_path / "c", **{f"d{n}": ("some text", "text") for n in range(10)})
    data = tiny(tmp_path, **{"test-share": 0.3}).load(None)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (7, 3)


def test_measure() -> None:
    targets = torch.tensor([[1, 2, 0, 1]])
    logits = 9 * torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 0]]), 3).float()
    measures = KeywordsTask("x").measure(logits, targets, ("O", "B-keyword", "I-keyword"))
    assert measures == {"f1-at-5": pytest.approx(2 / 3), "token-f1": pytest.approx(0.8)}
    assert list(measures) == ["f1-at-5", "token-f1"]


def test_broken_corpora(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected corpora"):
        tiny(tmp_path).load(None)
    corpus(tmp_path / "empty", one=("", "x"))
    with pytest.raises(DataError, match=r"empty: expected documents docsutf8/ID\.txt"):
        tiny(tmp_path).load(None)
    other = corpus(tmp_path / "other", one=("a text", "text"))
    (other / "docsutf8" / "one.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"docsutf8/one\.txt: byte 3 is no utf-8"):
        tiny(other).load(None)
    (other / "docsutf8" / "one.txt").write_text("a text")
    (other / "keys" / "one.key").rename(other / "keys" / "two.key")
    with pytest.raises(DataError, match=r"expected its key phrases in keys/one\.key"):
        tiny(other).load(None)
    (tmp_path / "c.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="is no whole zip archive"):
        tiny(tmp_path / "c.zip").load(None)
    for options, message in (({"vocabulary": 1}, "vocabulary=1"), ({"length": 0}, "length=0")):
        with pytest.raises(ConfigError, match=message):
            tiny(tmp_path, **options)
    with pytest.raises(ConfigError, match="test-share"):
        tiny(tmp_path, **{"test-share": -0.1})


def test_real_corpora(data_dir: Path) -> None:
    data = KeywordsTask("keyphrase", test_share=0.0).load(data_dir)
    assert Counter(data.pool.groups) == {"Inspec": 2000, "SemEval2017": 493, "kdd": 755, "www": 1330}
    assert data.pool.strata is not None
    assert int((data.pool.targets == 1).sum()) == int(data.pool.strata.sum())
    assert int((data.pool.strata > 0).sum()) > 4000
