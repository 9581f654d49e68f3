from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedstill.common.data.classes import class_names, class_positions, set_aside
from fedstill.common.data.readers import TableFiles
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.scenario import build
from fedstill.common.task import Examples
from fedstill.common.tasks.tabular import TabularTask

CSV = """age,colour,risk
30, red ,low
?,blue,high
50,,low
40,red,high
"""


def load(folder: Path, text: str | bytes, **options: object) -> TabularTask:
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    task = build(TabularTask, {"source": str(path), "test-share": 0.0, **options}, "tasks.t")
    assert isinstance(task, TabularTask)
    return task


def test_numbers_words_and_gaps(tmp_path: Path) -> None:
    data = load(tmp_path, CSV).load(None)
    assert data.classes == ("high", "low")
    assert data.pool.targets.tolist() == [1, 0, 1, 0]
    assert data.pool.inputs.nan_to_num(-1).tolist() == [[30, 0, 1], [-1, 1, 0], [50, 0, 0], [40, 0, 1]]
    assert data.pool.groups == ()
    assert data.test is None


def test_prepare_uses_the_proxy_only(tmp_path: Path) -> None:
    task = load(tmp_path, CSV)
    inputs = task.load(None).pool.inputs
    ready = task.prepare(inputs, inputs[[0, 2]])  # ages 30 and 50: mean 40, deviation 10
    assert ready.tolist() == [[-1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_threshold_owner_and_ignored_columns(tmp_path: Path) -> None:
    text = "1;x;7;0\n2;y;8;3\n3;x;9;1\n4;;9;-1\n"
    options: dict[str, object] = {"header": False, "delimiter": ";", "positive-above": 0, "owner": 1, "ignore": [2]}
    data = load(tmp_path, text, **options).load(None)
    assert data.classes == ("no", "yes")
    assert data.pool.targets.tolist() == [0, 1, 1, 0]
    assert data.pool.inputs.tolist() == [[1], [2], [3], [4]]
    assert data.pool.groups == ("x", "y", "x", "unknown")
    named = load(tmp_path, text, **options, classes=["healthy", "sick"]).load(None)
    assert named.classes == ("healthy", "sick")


def test_columns_by_name_and_by_number(tmp_path: Path) -> None:
    by_name = load(tmp_path, CSV, target="colour", ignore=["risk"], missing=["?", "none"])
    with pytest.raises(DataError, match="row 3 without a label"):
        by_name.load(None)
    by_number = load(tmp_path, CSV.replace("50,,", "50,red,"), target=1, ignore=["risk"]).load(None)
    assert by_number.classes == ("blue", "red")
    with pytest.raises(DataError, match=r"column 'colr': expected a column of the file \(did you mean 'colour'"):
        load(tmp_path, CSV, target="colr").load(None)
    with pytest.raises(DataError, match="column '3': expected a column"):
        load(tmp_path, CSV, target=3).load(None)


def test_numbers_that_stand_for_kinds(tmp_path: Path) -> None:
    data = load(tmp_path, "kind,y\n3,a\n1,b\n3,b\n", categorical=["kind"]).load(None)
    assert data.pool.inputs.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_files_of_owners(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "b.north.data").write_text("3,1\n")
    (tmp_path / "h" / "a.south.data.gz").write_bytes(gzip.compress(b"1,0\n2,1\n", mtime=0))
    (tmp_path / "h" / "SOURCE.txt").write_text("not a table")
    for source in ("h", "h/*.data*"):
        data = TabularTask(source=source, header=False, owner="file", test_share=0).load(tmp_path)
        assert data.pool.inputs.tolist() == [[1], [2], [3]]
        assert data.pool.groups == ("a.south", "a.south", "b.north")
    with pytest.raises(DataError, match="expected a file that matches"):
        TabularTask(source="h/*.xls").load(tmp_path)
    (tmp_path / "h" / "c.data").write_text("3,1,4\n")
    with pytest.raises(DataError, match=r"c\.data: columns 0, 1, 2: expected those of .*a\.south"):
        TabularTask(source="h", header=False).load(tmp_path)


def test_a_test_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("x,w,y\n1,a,no\n2,b,yes\n")
    (tmp_path / "test.csv").write_text("x,w,y\n5,c,yes\n")
    data = TabularTask(source="train.csv", test_source="test.csv", owner="file").load(tmp_path)
    assert data.test is not None
    assert data.pool.inputs.tolist() == [[1, 1, 0, 0], [2, 0, 1, 0]]
    assert data.test.inputs.tolist() == [[5, 0, 0, 1]]
    assert data.test.targets.tolist() == [1]
    assert data.pool.groups == ("train", "train")


def test_a_byte_order_mark_and_latin_1(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbfx,y\n1,a\n2,b\n", target="y", ignore=[]).load(None).pool.inputs.tolist() == [
        [1],
        [2],
    ]
    latin = "x,y\n1,f\xfcnf\n".encode("latin-1")
    with pytest.raises(DataError, match=r"byte 7 is no utf-8 \(set the task's 'encoding'"):
        load(tmp_path, latin).load(None)
    assert load(tmp_path, latin, encoding="latin-1").load(None).classes == ("fünf",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not empty"),
        ("\n\n", "expected at least one row"),
        ("a,b\n", "expected at least one row"),
        ("a,b\n1,2\n1\n", "row 2 of 1 cells: expected 2"),
        ("a,b\n1,2,3\n", "row 1 of 3 cells: expected 2"),
        ("a,a\n1,2\n", "expected every column once"),
        ('a,b\n"1,2\n', "is no CSV"),
        ('a,b\n"1"x,2\n', "is no CSV"),
        ("a,b\n1,x\nz,y\n", "'z' in row 2, column 'a': expected a finite number"),
        ("a,b\n1,x\ninf,y\n", "'inf' in row 2"),
        ("b\nx\n", "expected a column beside the target"),
        ("a,b\n" + "".join(f"w{n},x\n" for n in range(101)), "with 101 different words: expected at most 100"),
        (b"a,b\n\xff,1\n", "byte 4 is no utf-8"),
        (b"\x1f\x8b\x08\x00", "cannot be unpacked"),
        (gzip.compress(CSV.encode(), mtime=0)[:-10], "cannot be unpacked"),
    ],
)
def test_damaged_tables(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, text).load(None)


def test_label_outside_the_space(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label 'low' of row 1: expected one of 2 classes \(did you mean 'slow'"):
        load(tmp_path, CSV, classes=["high", "slow"]).load(None)


def test_missing_data_and_wrong_options(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(DataError, match=r"data 'none\.csv'"):
            TabularTask(source="none.csv").load(folder)
    with pytest.raises(ConfigError, match="delimiter=';;'"):
        TabularTask(delimiter=";;")
    with pytest.raises(ConfigError, match="encoding='utf-9'"):
        TabularTask(encoding="utf-9")
    with pytest.raises(ConfigError, match="3 classes with positive-above"):
        TabularTask(positive_above=1, classes=("a", "b", "c"))


@pytest.mark.parametrize(("source", "shape", "classes"), [("breast-cancer", (569, 30), 2), ("wine", (178, 13), 3)])
def test_tables_of_scikit_learn(source: str, shape: tuple[int, int], classes: int) -> None:
    task = TabularTask(source=source, test_share=0)
    data = task.load(None)
    assert data.pool.inputs.shape == shape
    assert len(data.classes) == classes
    ready = task.prepare(data.pool.inputs, data.pool.inputs[:100])
    assert ready.dtype == torch.float32
    assert ready[:100].mean(0).abs().max() < 0.05


def test_measures() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Class 0: 2 hits, 1 false alarm: F1 = 4/5. Class 1: 1 hit, 1 miss: F1 = 2/3.
    measured = TabularTask().measure(logits, torch.tensor([0, 0, 1, 1]), ("a", "b"))
    assert list(measured) == ["accuracy", "macro-f1", "auc"]
    assert measured == {"accuracy": 0.75, "macro-f1": pytest.approx((4 / 5 + 2 / 3) / 2), "auc": 0.75}


def test_class_names_and_positions() -> None:
    assert class_names(["10", "9", "9"]) == ("9", "10")
    assert class_names(["b", "10", "a"]) == ("10", "a", "b")
    assert class_positions(["b", "a"], ("a", "b"), "f").tolist() == [1, 0]
    assert class_positions(["0", "1"], ("a", "b"), "f").tolist() == [0, 1]
    assert class_positions(["2", "1"], ("a", "b"), "f").tolist() == [1, 0]
    assert class_positions(["2", "1"], ("1", "2"), "f").tolist() == [1, 0]
    for labels in (["0", "1", "2"], ["3"], ["a", "1"]):
        with pytest.raises(DataError, match="f: label"):
            class_positions(labels, ("a", "b"), "f")


def test_set_aside_is_a_split_that_never_changes() -> None:
    examples = Examples(torch.arange(10), torch.zeros(10, dtype=torch.int64))
    pool, test = set_aside(examples, 0.25)
    assert test is not None
    assert sorted(pool.inputs.tolist() + test.inputs.tolist()) == list(range(10))
    assert len(test) == 2
    again = set_aside(examples, 0.25)[1]
    assert again is not None
    assert test.inputs.tolist() == again.inputs.tolist()
    assert set_aside(examples, 0.05) == (examples, None)


def test_real_heart_disease_of_four_hospitals(data_dir: Path) -> None:
    task = TabularTask(source="heart_disease", header=False, positive_above=0, owner="file", test_share=0)
    data = task.load(data_dir)
    sizes = {owner: data.pool.groups.count(owner) for owner in sorted(set(data.pool.groups))}
    assert sizes == {
        "processed.cleveland": 303,
        "processed.hungarian": 294,
        "processed.switzerland": 123,
        "processed.va": 200,
    }
    assert data.pool.inputs.shape == (920, 13)
    assert data.pool.targets.bincount().tolist() == [411, 509]
    assert math.isnan(float(data.pool.inputs.sum()))
    assert task.prepare(data.pool.inputs, data.pool.inputs[:100]).isfinite().all()


def test_the_main_measure_and_the_area_under_the_curve() -> None:
    task = TabularTask(measured="auc")
    # Log-odds of class 1: −1, 1, 0, 2; three of the four pairs of a 0 and a 1 are in order.
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-1.0, 1.0]])
    measured = task.measure(logits, torch.tensor([0, 0, 1, 1]), ("a", "b"))
    assert list(measured) == ["auc", "accuracy", "macro-f1"]
    assert (measured["auc"], measured["accuracy"]) == (0.75, 0.5)


def test_comments_and_ends_of_labels(tmp_path: Path) -> None:
    options: dict[str, object] = {"header": False, "comment": "|", "label-end": "."}
    data = load(tmp_path, "|1x3 Cross validator\n25, <=50K.\n38, >50K\n", **options).load(None)
    assert data.classes == ("<=50K", ">50K")
    assert data.pool.targets.tolist() == [0, 1]
    assert data.pool.inputs.tolist() == [[25], [38]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected at least one row"):
        load(tmp_path / "empty", "|only\n|this\n", **options).load(None)


def test_real_adult(data_dir: Path) -> None:
    task = TabularTask(
        "adult/adult.data.gz",
        test_source="adult/adult.test.gz",
        header=False,
        comment="|",
        label_end=".",
        ignore=(2,),
    )
    data = task.load(data_dir)
    assert data.test is not None
    assert data.classes == ("<=50K", ">50K")
    assert data.pool.targets.bincount().tolist() == [24_720, 7_841]
    assert data.test.targets.bincount().tolist() == [12_435, 3_846]
    assert data.pool.inputs.shape == (32_561, 104)


def test_a_reader_of_files_has_the_columns_of_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,colour,ill\n1,red,no\n?,blue,yes\n3,,no\n")
    task = TabularTask(source="t.csv", target="ill", test_share=0)
    data = task.load(tmp_path)
    assert data.columns == ("age", "colour=blue", "colour=red")

    reader = task.usage(tmp_path, data.pool.inputs).reader
    assert isinstance(reader, TableFiles)
    assert (reader.names, reader.places, reader.words) == (("age", "colour"), (0, 1), (None, ("blue", "red")))
    _, rows = reader.read([tmp_path / "t.csv"], tmp_path)
    assert np.array_equal(rows, data.pool.inputs.numpy(), equal_nan=True)

    # Another table in the same columns: what it does not have is 0.
    (tmp_path / "u.csv").write_text("colour,ill,age\nred,yes,5\n")
    other = TabularTask(source="u.csv", target="ill", classes=("no", "yes"), test_share=0)
    assert other.load_columns(tmp_path, data.columns).pool.inputs.tolist() == [[5.0, 0.0, 1.0]]
    # Where the table is not, there is no reader, but the preparation is.
    assert task.usage(tmp_path / "elsewhere", data.pool.inputs).reader is None


def test_columns_without_a_word_are_no_features(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a column beside the target"):
        load(tmp_path, "a,y\n?,no\n,yes\n").load(None)
