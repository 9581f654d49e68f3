"""What an exported student reads by itself is what the task reads."""

from __future__ import annotations

import math
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedstill.common.data.content import read_text
from fedstill.common.data.readers import (
    READERS,
    ImageFiles,
    Reader,
    Sentences,
    TableFiles,
    TextLines,
    WaveFiles,
    WordLines,
)
from fedstill.common.errors import DataError
from fedstill.common.registry import TASKS
from fedstill.common.task import TaskData
from fedstill.common.tasks.image import ImageTask
from fedstill.common.tasks.tabular import TabularTask
from fedstill.common.usage import Usage

SAMPLES = Path(__file__).parents[1] / "samples"


class Sample:
    """A task with its tiny sample in a folder, and what its models need."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        told = runpy.run_path(str(SAMPLES / f"{name.replace('-', '_')}.py"))
        told["write"](folder)
        self.task = TASKS.get(name)(**{**told["OPTIONS"], **options})
        self.data: TaskData = self.task.load(folder)
        self.usage: Usage = self.task.usage(folder, self.data.pool.inputs[:20])
        self.folder = folder

    def read(self, *paths: Path) -> tuple[list[str], NDArray[Any]]:
        for name, content in self.usage.files.items():
            (self.folder / name).write_bytes(content)
        assert self.usage.reader is not None
        return self.usage.reader.read(paths, self.folder)

    def lines(self, *lines: str) -> NDArray[Any]:
        path = self.folder / "lines.txt"
        path.write_text("\n".join(lines) + "\n")
        names, raw = self.read(path)
        assert names == [f"{path}:{number}" for number in range(1, len(lines) + 1)]
        return raw


@pytest.fixture
def sample(tmp_path: Path) -> Callable[..., Sample]:
    return lambda name, **options: Sample(name, tmp_path, **options)


def everything(data: TaskData) -> list[list[Any]]:
    parts = [data.pool, data.test] if data.test is not None else [data.pool]
    rows: list[list[Any]] = torch.cat([part.inputs for part in parts]).tolist()
    return rows


def test_every_reader_says_what_it_accepts() -> None:
    assert all(kind.kind == name and kind.accepts for name, kind in READERS.items())


# Texts ---------------------------------------------------------------------------------------------------------------


def test_lines_of_text(sample: Callable[..., Sample]) -> None:
    text = sample("text")
    rows = everything(text.data)
    for line in text.lines("the rain of day 0", "the sun of day 1").tolist():
        assert line in rows


def test_lines_with_a_tokenizer(sample: Callable[..., Sample], tmp_path: Path) -> None:
    from fedstill.common.data.tokenizer import train_bpe

    train_bpe(["the rain of day", "the sun of day"], 300, tmp_path / "words.json")
    text = sample("text", tokenizer="words.json", length=12)
    rows = everything(text.data)
    assert all(line in rows for line in text.lines("the rain of day 0", "the sun of day 1").tolist())


def test_commands_have_a_mark_before_them(sample: Callable[..., Sample]) -> None:
    for name in ("intent", "slots", "intent-slots"):
        folder = runpy.run_path(str(SAMPLES / f"{name.replace('-', '_')}.py"))
        reader = TASKS.get(name)(**folder["OPTIONS"])
        told = TextLines(reader.vocabulary, reader.length, mark=True)
        ids = told._ids(["play some jazz"], Path())
        assert ids.shape == (1, 1 + reader.length)
        assert ids[0, 0] == reader.vocabulary - 1
        assert ids[0, 1:4].min() > 0
        assert ids[0, 1:].max() < reader.vocabulary - 1


def test_pairs_of_texts(sample: Callable[..., Sample], tmp_path: Path) -> None:
    matching = sample("matching")
    raw = matching.lines("a man runs\ta dog runs")
    length = matching.task.length
    first = TextLines(matching.task.vocabulary, length)._ids(["a man runs"], tmp_path)
    assert raw.shape == (1, 2, length)
    assert raw[0, 0].tolist() == first[0].tolist()
    with pytest.raises(DataError, match=r"lines\.txt:1 of 1 texts: expected 2, with tabs between"):
        matching.lines("a man runs")


def test_a_query_with_its_candidates(sample: Callable[..., Sample]) -> None:
    search = sample("search")
    raw = search.lines("\t".join(["what is hot", *(f"document {number}" for number in range(6))]))
    assert raw.shape == (1, 7, 12)


def test_words_with_their_shapes(sample: Callable[..., Sample]) -> None:
    tagging = sample("tagging")
    rows = everything(tagging.data)
    assert tagging.lines("then Ann Lee saw Rome").tolist()[0] in rows


def test_sentences_to_be_translated(sample: Callable[..., Sample], tmp_path: Path) -> None:
    translation = sample("translation")
    source = next(tmp_path.rglob(f"train.{translation.task.languages[0]}*"))
    first = read_text(source).split("\n")[0]
    assert translation.lines(first).tolist()[0] in everything(translation.data)


def test_empty_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n\none\r\n\ntwo\n")
    names, raw = TextLines(100, 3).read([path, path], tmp_path)
    assert names == [f"{path}:3", f"{path}:5"] * 2
    assert raw.shape == (4, 3)
    path.write_text("\n \n")
    with pytest.raises(DataError, match="expected at least one line"):
        WordLines(100, 3).read([path], tmp_path)


def test_a_tokenizer_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer"):
        Sentences("tokenizer.json", 3, 4).read([tmp_path / "lines.txt"], tmp_path)


# Recordings and images -----------------------------------------------------------------------------------------------


def test_recordings(sample: Callable[..., Sample], tmp_path: Path) -> None:
    speech = sample("speech")
    files = sorted((tmp_path / "recordings").glob("*.wav"))
    names, raw = speech.read(tmp_path / "recordings")
    assert names == [str(path) for path in files]
    assert np.array_equal(speech.read(*files[:3])[1], raw[:3])
    # In the order of the names, of which the test part took the first takes.
    pool = [row for row, path in enumerate(files) if int(path.stem.rpartition("_")[2]) >= 2]
    assert np.array_equal(raw[pool], speech.data.pool.inputs.numpy())


def test_recordings_of_another_rate(sample: Callable[..., Sample], tmp_path: Path) -> None:
    reader = sample("speech").usage.reader
    assert isinstance(reader, WaveFiles)
    assert reader.rate == 8000
    other = WaveFiles(16000, mels=16, window=32.0, hop=16.0, seconds=0.3)
    with pytest.raises(DataError, match=r"of 8000 Hz: expected 16000 Hz \(resample it\)"):
        other.read([tmp_path / "recordings"], tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "pictures" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(("side", "negative"), [(0, False), (6, True)])
def test_images(pictures: Path, tmp_path: Path, side: int, negative: bool) -> None:
    task = ImageTask(source="pictures", side=side, negative=negative, test_share=0.0)
    pool = task.load(tmp_path).pool.inputs
    reader = task.usage(tmp_path, pool).reader
    assert isinstance(reader, ImageFiles)
    names, raw = reader.read([pictures], tmp_path)
    assert [Path(name).parent.name for name in names[:2]] == ["dark", "dark"]
    assert np.array_equal(raw, pool.numpy())
    one = sorted((pictures / "light").iterdir())[0]
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(one, "one.png")
    for path in (one, tmp_path / "one.zip"):
        assert np.array_equal(reader.read([path], tmp_path)[1], pool.numpy()[12:13])


def test_images_of_another_size(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of 12 × 10 pixels: expected 8 × 8"):
        ImageFiles(8, 8, "RGB", resize=False).read([pictures], tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        ImageFiles(8, 8).read([tmp_path / "no.png"], tmp_path)


def test_scikit_learns_digits_are_no_files() -> None:
    task = ImageTask()
    assert task.usage(None, task.load(None).pool.inputs[:9]).reader is None


# Tables --------------------------------------------------------------------------------------------------------------

ROWS = "age,colour,height,who,label\n1,red,1.5,ann,a\n2,blue,?,bob,b\n3,,1.7,ann,a\n4,red,1.8,bob,b\n"


@pytest.fixture
def table(tmp_path: Path) -> tuple[TabularTask, Path]:
    (tmp_path / "rows.csv").write_text(ROWS)
    return TabularTask(source="rows.csv", owner="who", test_share=0.0), tmp_path


def test_tables_with_a_header(table: tuple[TabularTask, Path]) -> None:
    task, folder = table
    pool = task.load(folder).pool.inputs
    reader = task.usage(folder, pool).reader
    assert isinstance(reader, TableFiles)
    assert (reader.names, reader.words) == (("age", "colour", "height"), (None, ("blue", "red"), None))
    names, raw = reader.read([folder / "rows.csv"], folder)
    assert names[:2] == [f"{folder / 'rows.csv'}:1", f"{folder / 'rows.csv'}:2"]
    np.testing.assert_array_equal(raw, pool.numpy())
    # Columns by name, in any order; a word that nobody knew is none of the known ones.
    (folder / "new.csv").write_text("height,colour,age,more\nNA,green,7,x\n")
    assert reader.read([folder / "new.csv"], folder)[1].tolist()[0][:3] == [7.0, 0.0, 0.0]
    (folder / "lacking.csv").write_text("age,colour\n1,red\n")
    with pytest.raises(DataError, match="column 'height'"):
        reader.read([folder / "lacking.csv"], folder)
    (folder / "words.csv").write_text("height,colour,age\ntall,red,7\n")
    with pytest.raises(DataError, match=r"row 1: 'tall' in column 'height': expected a finite number"):
        reader.read([folder / "words.csv"], folder)


def test_tables_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS.partition("\n")[2])
    task = TabularTask(source="rows.csv", header=False, ignore=(3,), test_share=0.0)
    pool = task.load(tmp_path).pool.inputs
    reader: Reader | None = task.usage(tmp_path, pool).reader
    assert reader is not None
    np.testing.assert_array_equal(reader.read([tmp_path / "rows.csv"], tmp_path)[1], pool.numpy())
    (tmp_path / "features.csv").write_text("1,red,1.5\n")
    np.testing.assert_array_equal(reader.read([tmp_path / "features.csv"], tmp_path)[1], pool.numpy()[:1])
    (tmp_path / "four.csv").write_text("1,red,1.5,ann\n")
    with pytest.raises(DataError, match="of 4 columns: expected 5, or the 3 that are features"):
        reader.read([tmp_path / "four.csv"], tmp_path)


def test_tables_that_scikit_learn_ships(tmp_path: Path) -> None:
    task = TabularTask(source="wine")
    pool = task.load(None).pool.inputs
    reader = task.usage(None, pool).reader
    assert isinstance(reader, TableFiles)
    cells = [",".join(map(str, row)) for row in pool[:3].tolist()]
    (tmp_path / "wines.csv").write_text("\n".join([",".join(reader.names), *cells]))
    assert reader.read([tmp_path / "wines.csv"], tmp_path)[1].tolist() == pool[:3].tolist()
    assert reader.names[0] == "alcohol"
    assert not any(math.isnan(value) for row in pool[:3].tolist() for value in row)
