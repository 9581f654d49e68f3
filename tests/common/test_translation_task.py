from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from fedstill.common.data.vocabulary import MARKS, learn_vocabulary, text_of
from fedstill.common.data.words import padded
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.outputs.sequence import END, PAD, START
from fedstill.common.scenario import build
from fedstill.common.task import TaskData
from fedstill.common.tasks.translation import TranslationTask

# Ten letters at most, and a few merges: the tokens of "ab" and "cd" are whole words.
LINES = {
    "train.en": "ab\nab cd\nab cd ab\n",
    "train.xx": "AB\nab ab\n\n",
    "val.en": "ab cd\n" * 9,
    "val.xx": "ab ef\n" * 9,
}


def write(folder: Path, **others: str) -> Path:
    for name, content in {**LINES, **{name.replace("_", "."): content for name, content in others.items()}}.items():
        (folder / name).write_text(content)
    return folder


def tiny(folder: Path | str, **options: object) -> TranslationTask:
    table = {"source": str(folder), "languages": ["en", "xx"], "vocabulary": 20, "length": 2, "target-length": 3}
    task = build(TranslationTask, {**table, "test-share": 0.0, **options}, "tasks.t")
    assert isinstance(task, TranslationTask)
    return task


def ids(data: TaskData, *tokens: str) -> list[int]:
    numbers = [data.classes.index(token) for token in tokens]
    return numbers + [PAD] * (data.positions[0] - len(numbers))


def test_vocabulary_by_hand() -> None:
    words = learn_vocabulary(["aab aab aab aac"], 9)
    # Marks and letters first, then the most frequent pair.
    assert words.tokens[:8] == (*MARKS, "a", "b", "c", "▁")
    assert words.tokens[8] in ("aa", "▁a")
    assert words.tokens == learn_vocabulary(["AAB aab", "aab aac"], 9).tokens
    assert words.digest == learn_vocabulary(["aab aab aab aac"], 9).digest
    assert words.digest != learn_vocabulary(["aab aab aab aac"], 8).digest
    assert [text_of(row, words.tokens) for row in words.encode(["Caa  baa", "", "dab"])] == ["caa baa", "", "[unk]ab"]
    with pytest.raises(DataError, match="8 letters and marks: expected at most vocabulary=6"):
        learn_vocabulary(["aab aab aab aac"], 6)


def test_text_ends_with_the_end_mark() -> None:
    tokens = (*MARKS, "▁a", "b", "▁c")
    assert text_of([4, 5, 6, END, 4], tokens) == "ab c"
    assert text_of([START, 6, PAD, 5], tokens) == "cb"
    assert text_of([], tokens) == ""
    assert padded([[4, 5, 6], [], [4]], 2).tolist() == [[4, 5], [0, 0], [4, 0]]
    assert (MARKS[PAD], MARKS[START], MARKS[END]) == ("[pad]", "[start]", "[end]")


def test_sentences_and_their_translations(tmp_path: Path) -> None:
    data = tiny(write(tmp_path)).load(None)
    assert data.positions == (3,)
    # The third sentence of three tokens is left out; the first two are followed by three empty places.
    assert data.pool.inputs.shape == (2, 5)
    assert data.pool.inputs[:, 2:].sum() == 0
    first, second = data.pool.inputs[:, :2].tolist()
    assert first[1] == PAD
    assert second[0] == first[0]
    assert second[1] not in (PAD, first[0])
    assert data.pool.targets.tolist() == [ids(data, "▁ab", "[end]"), ids(data, "▁ab", "▁ab", "[end]")]
    assert data.test is None
    cut = tiny(tmp_path, **{"target-length": 2, "length": 3}).load(None)
    assert cut.pool.targets[1].tolist() == ids(cut, "▁ab", "▁ab")
    assert cut.pool.targets[2].tolist() == ids(cut, "[end]")


def test_parts_and_packed_files(tmp_path: Path) -> None:
    write(tmp_path, test_2016_en="cd\n", test_2016_xx="ef\n")
    (tmp_path / "test.2016.en").rename(tmp_path / "test_2016.EN")
    (tmp_path / "test_2016.xx.gz").write_bytes(gzip.compress((tmp_path / "test.2016.xx").read_bytes(), mtime=0))
    (tmp_path / "test.2016.xx").unlink()
    (tmp_path / "SOURCE.txt").write_text("from nowhere")
    data = tiny(tmp_path).load(None)
    assert data.test is not None
    assert data.test.targets.tolist() == [ids(data, "▁ef", "[end]")]
    train = tiny(tmp_path, **{"tokens-from": "train"}).load(None)
    assert "▁ef" not in train.classes
    assert train.tokenizer != data.tokenizer


def test_another_language_shares_the_sentences_and_their_tokens(tmp_path: Path) -> None:
    write(tmp_path, train_yy="gh\ngh ij\ngh\n", val_yy="gh ij\n" * 9)
    one, other = (tiny(tmp_path, languages=["en", language]).load(None) for language in ("xx", "yy"))
    assert torch.equal(one.pool.inputs, other.pool.inputs)
    assert one.vocabulary == other.vocabulary
    assert one.tokenizer.split()[0] == other.tokenizer.split()[0]
    assert one.tokenizer.split()[1] != other.tokenizer.split()[1]
    assert one.classes != other.classes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_xx": "ab\n"}, r"train\.en and train\.xx: 3 and 1 lines: expected a translation for each line"),
        ({"train_en": "ab cd ab\n" * 3}, "no sentence of 1 to 2 tokens: expected some"),
        ({"dev_xx": "ab\n"}, r"dev\.xx without its 'en': expected a file of each language"),
        ({"dev_en": "ab\n", "dev_xx": "ab\n"}, "expected one file for each part"),
        ({"train_en": ""}, "expected a file that is not empty"),
    ],
)
def test_damaged_texts(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny(write(tmp_path, **files)).load(None)


def test_missing_data_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data 'none'"):
        tiny("none").load(tmp_path)
    with pytest.raises(DataError, match=r"expected a file that ends in \.en, \.zz"):
        tiny(tmp_path, languages=["en", "zz"]).load(None)
    write(tmp_path)
    with pytest.raises(DataError, match=r"part 'test' of .*: expected one of train, validation"):
        tiny(tmp_path, **{"tokens-from": "test"}).load(None)
    with pytest.raises(DataError, match="letters and marks: expected at most vocabulary=5"):
        tiny(tmp_path, vocabulary=5).load(None)
    (tmp_path / "train.en").write_bytes(b"\xff\nab\nab\n")
    with pytest.raises(DataError, match="byte 0 is no utf-8"):
        tiny(tmp_path).load(None)
    for option in ({"length": 0}, {"target-length": 0}, {"vocabulary": 4}, {"test-share": 1.0}, {"encoding": "x-none"}):
        with pytest.raises(ConfigError, match=next(iter(option)).replace("-", "[-_]")):
            tiny("x", **option)
    with pytest.raises(ConfigError, match=r"languages = \['en', 'EN'\]: expected two"):
        tiny("x", languages=["en", "EN"])


def test_prepare_and_measure(tmp_path: Path) -> None:
    task = tiny(write(tmp_path))
    data = task.load(None)
    assert task.prepare(data.pool.inputs, data.pool.inputs) is data.pool.inputs
    targets = torch.tensor([ids(data, "▁ab", "▁ab", "[end]"), ids(data, "▁ef", "▁ef", "[end]")])
    right = one_hot(targets, len(data.classes)).float()
    assert task.measure(right, targets, data.classes) == {"chrf": 1.0, "bleu": 0.0}  # BLEU asks for runs of four words
    # Letters after the end are not read: "ab" has 2 of 4 letters of "ab ab" and 1 of 3 pairs, and no longer run.
    short = one_hot(torch.tensor([ids(data, "▁ab", "[end]", "▁ab")]), len(data.classes)).float()
    half = task.measure(short, targets[:1], data.classes)["chrf"]
    assert 0 < half < 1
    assert task.measure(right.roll(1, 0), targets, data.classes)["chrf"] == 0
    assert task.measure(right[:0], targets[:0], data.classes) == {"chrf": 0.0, "bleu": 0.0}


def test_bleu_of_a_longer_sentence() -> None:
    tokens = (*MARKS, "▁a", "▁b", "▁c", "▁d", "▁e")
    targets = torch.tensor([[4, 5, 6, 7, 8, END]])
    told = torch.tensor([[4, 5, 6, 7, 7, END]])
    measures = TranslationTask("x").measure(one_hot(told, 9).float(), targets, tokens)
    # Precisions 4/5, 3/4, 2/3, 1/2 of one to four words; no brevity penalty.
    assert measures["bleu"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_real_multi30k(data_dir: Path) -> None:
    data = TranslationTask("multi30k").load(data_dir)
    assert data.pool.inputs.shape == (10_066, 34)
    assert data.test is not None
    assert len(data.test) == 365
    assert (data.vocabulary, len(data.classes)) == (1000, 1000)
    assert text_of(data.test.targets[0].tolist(), data.classes) == (
        "ein mann mit einem orangefarbenen hut, der etwas anstarrt."
    )
