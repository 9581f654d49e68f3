from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedstill.common.data.tokenizer import HashedWords, public_texts, read_tokenizer, tokens_of, train_bpe
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import build
from fedstill.common.tasks.text import TextTask

TEXTS = ["low lower lowest", "new newer newest", "wide wider widest"] * 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    train_bpe(TEXTS, 270, tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def word_level(words: list[str], **more: Any) -> str:
    """A tokenizer.json as Hugging Face writes it, with a word for each number."""
    return json.dumps(
        {
            "version": "1.0",
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {
                "type": "WordLevel",
                "vocab": {word: number for number, word in enumerate(words)},
                "unk_token": words[0],
            },
            **more,
        }
    )


def test_ids_are_the_tokenizers_plus_one(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(word_level(["?", "a", "b", "c"]))

    tokens = read_tokenizer(file)

    assert tokens.vocabulary == 5
    assert tokens.ids(["b a", "x c a b", ""], length=3).tolist() == [[3, 2, 0], [1, 4, 2], [0, 0, 0]]
    assert tokens.ids([], length=3).shape == (0, 3)
    assert tokens.ids(["a"], length=3).dtype == torch.int64


def test_padding_and_cutting_of_the_file_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    padding = {"strategy": {"Fixed": 2}, "direction": "Right", "pad_id": 1, "pad_type_id": 0, "pad_token": "a"}
    padding["pad_to_multiple_of"] = None
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    file.write_text(word_level(["?", "a", "b"], padding=padding, truncation=cut))

    assert read_tokenizer(file).ids(["b", "b b a b"], length=3).tolist() == [[3, 0, 0], [3, 3, 2]]


def test_a_cut_text_keeps_its_marks_of_begin_and_end(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    marks = {
        "type": "BertProcessing",
        "cls": ["[CLS]", 1],
        "sep": ["[SEP]", 2],
    }
    file.write_text(word_level(["?", "[CLS]", "[SEP]", "a"], post_processor=marks))

    assert read_tokenizer(file).ids(["a a a a"], length=4).tolist() == [[2, 4, 4, 3]]


def test_bpe_joins_what_is_frequent(path: Path) -> None:
    tokens = read_tokenizer(path)

    assert tokens.vocabulary == 271  # 256 bytes, 14 pairs, padding
    # "▁lowest" is one of few subwords, for its pairs are frequent; letters of other words stay single.
    assert int((tokens.ids(["lowest"], length=20) > 0).sum()) < 4
    assert int((tokens.ids(["zqxjk"], length=20) > 0).sum()) == 6  # the space before it and five letters
    assert torch.equal(tokens.ids(["LOW"], length=4), tokens.ids(["low"], length=4))


def test_any_text_comes_back_from_its_bytes(path: Path) -> None:
    tokens = read_tokenizer(path)

    assert [text.strip() for text in tokens.texts(tokens.ids(["naïve 日本 low!", ""], length=40))] == [
        "naïve 日本 low!",
        "",
    ]


def test_the_same_texts_give_the_same_file(path: Path, tmp_path: Path) -> None:
    again = train_bpe(iter(TEXTS), 270, tmp_path / "again.json")
    other = train_bpe([*TEXTS, "more words here"], 270, tmp_path / "other.json")

    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert again == read_tokenizer(path).digest
    assert len(again) == 64
    assert other != again


def test_tokens_of_a_task(path: Path, tmp_path: Path) -> None:
    hashed = tokens_of("", None, vocabulary=50)
    assert hashed == HashedWords(50)
    assert hashed.digest == ""
    assert int(hashed.ids(["some words"], length=3).max()) < 50
    for folder, name in ((tmp_path, "tokenizer.json"), (None, str(path))):
        assert tokens_of(name, folder, vocabulary=50).digest == read_tokenizer(path).digest


def test_a_text_task_with_a_tokenizer(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a-train.csv").write_text("low,x\nnew,y\nwide,x\n")
    (tmp_path / "a-test.csv").write_text("newest,y\n")
    task = build(
        TextTask, {"source": "a-*.csv", "tokenizer": "tokenizer.json", "length": 4, "delimiter": ","}, "tasks.t"
    )
    assert isinstance(task, TextTask)

    data = task.load(tmp_path)

    tokens = read_tokenizer(path)
    assert data.tokenizer == tokens.digest
    assert data.vocabulary == 271
    assert data.test is not None
    assert torch.equal(data.pool.inputs, tokens.ids(["low", "new", "wide"], length=4))
    assert torch.equal(data.test.inputs, tokens.ids(["newest"], length=4))


def test_public_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text,label\nthree,0\n", mtime=0))

    assert list(public_texts(tmp_path, ".")) == ["one", "two words", "three", "0"]
    assert list(public_texts(tmp_path, "*.txt")) == ["one", "two words"]
    with pytest.raises(DataError, match="data 'none'"):
        list(public_texts(tmp_path, "none"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', '{"model": {"type": "Magic"}}'])
def test_what_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)

    with pytest.raises(DataError, match=r"t\.json: (is no tokenizer|expected a file that is not empty)"):
        read_tokenizer(tmp_path / "t.json")


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data 'none\.json'"):
        tokens_of("none.json", tmp_path, vocabulary=50)
    with pytest.raises(DataError, match="cannot be read"):
        read_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="vocabulary=255: expected >= 256"):
        train_bpe(TEXTS, 255, tmp_path / "t.json")
    with pytest.raises(DataError, match="texts for a tokenizer: expected one at least"):
        train_bpe(["", " "], 300, tmp_path / "t.json")
    with pytest.raises(DataError, match="cannot be read"):
        train_bpe(TEXTS, 300, tmp_path / "no-folder" / "t.json")
