from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.data.texts import token_ids
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import build
from fedstill.common.tasks.text import TextTask


def ids(*words: str, vocabulary: int = 100, length: int = 3) -> list[int]:
    numbers = [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]
    return numbers + [0] * (length - len(numbers))


def tiny(source: str, **options: object) -> TextTask:
    task = build(TextTask, {"source": source, "vocabulary": 100, "length": 3, "test-share": 0.0, **options}, "tasks.t")
    assert isinstance(task, TextTask)
    return task


def test_token_ids_by_hand() -> None:
    # The check value of CRC-32 is 0xCBF43926 for "123456789".
    assert token_ids(["123456789"], vocabulary=2**32 + 1, length=2).tolist() == [[1 + 0xCBF43926, 0]]
    assert token_ids(["Hé, hé!", ""], vocabulary=100, length=5).tolist() == [
        ids("hé", ",", "hé", "!", length=5),
        [0] * 5,
    ]
    assert token_ids(["a b c d"], vocabulary=100, length=3).tolist() == [ids("a", "b", "c")]
    assert token_ids([], vocabulary=100, length=3).shape == (0, 3)


@given(st.lists(st.text(max_size=30), max_size=5), st.integers(2, 1000), st.integers(1, 8))
def test_token_ids_stay_in_the_vocabulary(texts: list[str], vocabulary: int, length: int) -> None:
    numbers = token_ids(texts, vocabulary=vocabulary, length=length)
    assert numbers.dtype == torch.int64
    assert numbers.shape == (len(texts), length)
    assert ((numbers >= 0) & (numbers < vocabulary)).all()
    # Padding is at the end only, and the same text has the same ids in any company and in capitals' absence.
    for text, row in zip(texts, numbers, strict=True):
        used = int((row > 0).sum())
        assert (row[:used] > 0).all()
        assert torch.equal(token_ids([text.lower()], vocabulary=vocabulary, length=length)[0], row)


def test_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "my-train.csv.gz").write_bytes(
        gzip.compress(b'"Big win, again",1\nStocks fall,0\nCup won,1\n', mtime=0)
    )
    (tmp_path / "test.csv").write_text('"2","Cup","lost"\n"1","Bank","fails"\n"2","Gold","medal"\n')
    (tmp_path / "SOURCE.txt").write_text("from nowhere")
    data = tiny(str(tmp_path), classes=["Business", "Sports"]).load(None)
    assert data.test is not None
    assert data.classes == ("Business", "Sports")
    assert data.vocabulary == 100
    assert data.pool.inputs.tolist() == [ids("big", "win", ","), ids("stocks", "fall"), ids("cup", "won")]
    assert data.pool.targets.tolist() == [1, 0, 1]
    assert data.test.inputs.tolist() == [ids("cup", "lost"), ids("bank", "fails"), ids("gold", "medal")]
    assert data.test.targets.tolist() == [1, 0, 1]
    assert tiny(str(tmp_path)).load(None).classes == ("0", "1")


def test_csv_with_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(
        "id\tText\tSentiment\tauthor\n1\tso good\tpos\tann\n2\tso bad\tneg\tbob\n3\tgood\tpos\t\n"
    )
    data = tiny("a.tsv", owner="author").load(tmp_path)
    assert data.classes == ("neg", "pos")
    assert data.pool.inputs.tolist() == [ids("so", "good"), ids("so", "bad"), ids("good")]
    assert data.pool.groups == ("ann", "bob", "unknown")
    other = tiny("a.tsv", text=["sentiment"], owner="file")
    with pytest.raises(DataError, match=r"column 'sentiment'.*did you mean 'Sentiment'"):
        other.load(tmp_path)
    (tmp_path / "b.csv").write_text("mood,note\nx,hi there\ny,oh\n")
    named = tiny("b.csv", label="mood", owner="file").load(tmp_path)
    assert named.classes == ("x", "y")
    assert named.pool.inputs.tolist() == [ids("hi", "there"), ids("oh")]
    assert named.pool.groups == ("b", "b")


def test_json_parts_and_owners_of_labels(tmp_path: Path) -> None:
    parts = {
        "train": [["pay my bill", "bill"], ["book a flight", "flight"]],
        "val": [["my bill", "bill"]],
        "test": [["a flight", "flight"]],
        "oos_train": [["who won", "oos"]],
    }
    (tmp_path / "data.json.gz").write_bytes(gzip.compress(json.dumps(parts).encode(), mtime=0))
    (tmp_path / "domains.json").write_text(json.dumps({"bank": ["bill"], "travel": ["flight"]}))
    data = tiny(str(tmp_path)).load(None)
    assert data.test is not None
    assert data.classes == ("bill", "flight")
    assert data.pool.inputs.tolist() == [ids("pay", "my", "bill"), ids("book", "a", "flight")]
    assert data.pool.groups == ("bank", "travel")
    assert data.test.targets.tolist() == [1]
    assert data.test.groups == ()
    more = tiny(str(tmp_path), parts=["train", "val", "oos_train"]).load(None)
    assert more.classes == ("bill", "flight", "oos")
    assert more.pool.groups == ("bank", "travel", "bank", "unknown")
    with pytest.raises(DataError, match=r"part 'dev' of .*: expected one of oos_train, test, train, val"):
        tiny(str(tmp_path), parts=["dev"]).load(None)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "test.json"])
def test_json_rows(tmp_path: Path, name: str) -> None:
    rows = [{"label": 1, "text": "Yes please"}, {"label": 0, "text": "no"}]
    content = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    (tmp_path / name).write_text(content)
    data = tiny(name).load(tmp_path)
    assert data.classes == ("0", "1")
    assert data.pool.targets.tolist() == [1, 0]
    assert data.pool.inputs.tolist() == [ids("yes", "please"), ids("no")]
    assert data.test is None


def test_lines_with_a_label(tmp_path: Path) -> None:
    (tmp_path / "Q.train.txt").write_bytes(
        b"NUM:date When was it ?\n\nLOC:city  Where\x85 is P\xe9cs ?\r\nNUM:dist How far ?\n"
    )
    (tmp_path / "Q.test.txt").write_text("LOC Where ?\n")
    (tmp_path / "SOURCE.txt").write_text("from nowhere")
    data = tiny("Q.*.txt", encoding="latin-1").load(tmp_path)
    assert data.classes == ("LOC", "NUM")
    assert data.pool.targets.tolist() == [1, 0, 1]
    assert data.pool.inputs.tolist() == [ids("when", "was", "it"), ids("where", "is", "pécs"), ids("how", "far", "?")]
    assert data.test is not None
    assert data.test.targets.tolist() == [0]
    fine = tiny("Q.train.txt", encoding="latin-1", label="fine-label").load(tmp_path)
    assert fine.classes == ("LOC:city", "NUM:date", "NUM:dist")
    with pytest.raises(DataError, match=r"expected a file that ends in \.csv"):
        tiny(str(tmp_path)).load(None)
    # With a delimiter it is a table whose name ends so.
    assert tiny("Q.test.txt", delimiter=" ", label=0).load(tmp_path).classes == ("LOC",)


def test_test_share_where_there_is_no_test_part(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("".join(f"word{n} here,{n % 2}\n" for n in range(10)))
    data = tiny("a.csv", **{"test-share": 0.3}).load(tmp_path)
    assert data.test is not None
    assert (len(data.pool), len(data.test)) == (7, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "not empty"),
        ("a.csv", b"only text\nmore text\n", "one column: expected texts and labels"),
        ("a.csv", b"text,label\n", "expected at least one row"),
        ("a.csv", b"a text,0\nanother\n", "row 2 of 1 cells: expected 2"),
        ("a.csv", b"text,label\nhi,\n", "expected no empty class name"),
        ("a.csv", b"f\xfcnf,0\n", "byte 1 is no utf-8"),
        ("a.csv.gz", gzip.compress(b"a text,0\n", mtime=0)[:-6], "cannot be unpacked"),
        ("a.txt", b"NUM how far\nwhere\n", "line 2 'where': expected a label, a space and a text"),
        ("a.txt", b"\n \n", "expected at least one row"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.jsonl", b'["a", "b"]\n{', "is no JSON"),
        ("a.json", b"[]", "expected a list of rows"),
        ("a.json", b'"text"', "expected a list of rows"),
        ("a.json", b'{"train": 3}', "a.json: train: expected a list of rows"),
        ("a.json", b'[["a", "b"], ["a"]]', "row 2 of 1 cells: expected 2"),
        ("a.json", b'[["a", "b"], {"text": "a"}]', "expected rows of one form"),
        ("a.json", b'[{"text": "a", "label": "b"}, {"text": "a"}]', "expected rows of one form"),
        ("a.json", b'[["a", null]]', "expected cells of text or numbers"),
        ("a.json", b'[["a", ["b"]]]', "expected cells of text or numbers"),
        ("a.json", b"[3, 4]", "expected rows of one form"),
        ("a.json", b'{"bank": ["bill"]}', "expected one of none, for it has no texts"),
    ],
)
def test_damaged_texts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        tiny(name).load(tmp_path)


def test_label_outside_the_space(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a text,up\nb text,down\n")
    (tmp_path / "test.csv").write_text("a text,dwn\nc text,dwn\n")
    with pytest.raises(
        DataError, match=r"test\.csv: label 'dwn' of row 1: expected one of 2 classes \(did you mean 'down'"
    ):
        tiny(str(tmp_path)).load(None)


def test_missing_data_and_wrong_options(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(DataError, match="data 'none'"):
            TextTask("none").load(folder)
    with pytest.raises(DataError, match=r"expected a file that ends in \.csv"):
        TextTask(str(tmp_path)).load(None)
    with pytest.raises(ConfigError, match="vocabulary=1: expected >= 2"):
        TextTask("x", vocabulary=1)
    with pytest.raises(ConfigError, match="length=0"):
        TextTask("x", length=0)
    with pytest.raises(ConfigError, match=r"tasks\.t\.source"):
        build(TextTask, {}, "tasks.t")


def test_prepare_and_measure() -> None:
    tokens = torch.tensor([[1, 2, 0]])
    assert TextTask("x").prepare(tokens, tokens) is tokens
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert TextTask("x").measure(logits, torch.tensor([0, 1]), ("a", "b")) == {
        "accuracy": 0.5,
        "macro-f1": pytest.approx(1 / 3),
    }


def test_real_ag_news(data_dir: Path) -> None:
    data = TextTask("ag_news", classes=("World", "Sports", "Business", "Sci/Tech")).load(data_dir)
    assert data.test is not None
    assert data.pool.inputs.shape == (5000, 64)
    assert data.pool.targets.bincount().tolist() == [1259, 1257, 1281, 1203]
    assert data.test.targets.bincount().tolist() == [1900] * 4


def test_real_clinc150_by_domain(data_dir: Path) -> None:
    data = TextTask("clinc150", length=32).load(data_dir)
    assert data.test is not None
    assert data.pool.inputs.shape == (15_000, 32)
    assert len(data.classes) == 150
    assert data.pool.targets.bincount().tolist() == [100] * 150
    assert data.test.targets.bincount().tolist() == [30] * 150
    assert {data.pool.groups.count(owner) for owner in set(data.pool.groups)} == {1500}


def test_real_trec(data_dir: Path) -> None:
    task = TextTask("trec/TREC.*.txt", encoding="latin-1", length=32)
    data = task.load(data_dir)
    assert data.test is not None
    assert data.classes == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert data.pool.targets.bincount().tolist() == [86, 1162, 1250, 1223, 835, 896]
    assert len(data.test) == 500
    assert len(replace(task, label="fine-label", test_parts=()).load(data_dir).classes) == 50
