from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedstill.common.data.texts import token_ids
from fedstill.common.data.trec import Document, read_trec
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.outputs import output_kind
from fedstill.common.scenario import build
from fedstill.common.tasks.search import SearchTask

DOCUMENTS = "\n".join(
    f"<doc>\n<docno>{number}</docno>\n<title>on {word}\n .</title>\n<bib>x</bib>\n"
    f"<text>on {word} .\n  {word} &amp; {text}</text>\n</doc>"
    for number, (word, text) in enumerate(
        [
            ("heat", "fire"),
            ("heat", "sun"),
            ("wings", "a bird"),
            ("wings", "planes"),
            ("law", "courts"),
            ("law", "tax"),
        ],
        1,
    )
)
QUERIES = """<?xml version='1.0'?>
<xml>
<top><num> 7</num><title>
what is hot
</title></top>
<top><num> 9</num><title>what flies</title></top>
</xml>
"""
JUDGEMENTS = "1 0 1 1\n1 0 2 3\n1 0 5 0\n\n2 0 4 1\n"


def written(folder: Path, **changes: str) -> Path:
    content = {"docs.xml": DOCUMENTS, "queries.xml": QUERIES, "qrels.txt": JUDGEMENTS, "SOURCE.txt": "from nowhere"}
    for name, text in (content | changes).items():
        (folder / name).write_text(text)
    return folder


def tiny(source: Path, **options: object) -> SearchTask:
    given = {"source": str(source), "vocabulary": 1000, "length": 4, "candidates": 3, **options}
    task = build(SearchTask, given, "tasks.t")
    assert isinstance(task, SearchTask)
    return task


def test_files_of_a_collection_in_any_order(tmp_path: Path) -> None:
    paths = sorted(written(tmp_path).iterdir(), reverse=True)
    found = read_trec(paths, numbering="order")
    assert list(found.documents) == ["1", "2", "3", "4", "5", "6"]
    assert found.documents["1"] == Document("on heat .", "heat & fire")
    # Cranfield's judgements call a query by its place in the file, whatever its number is.
    assert found.queries == {"1": "what is hot", "2": "what flies"}
    assert found.judgements == {("1", "1"): 1, ("1", "2"): 3, ("1", "5"): 0, ("2", "4"): 1}
    (tmp_path / "qrels.txt").write_text("9 0 4 1\n")
    assert read_trec(paths, numbering="num").queries == {"7": "what is hot", "9": "what flies"}


def test_titles_are_asked_and_judged_queries_measure(tmp_path: Path) -> None:
    data = tiny(written(tmp_path), topics=["heat", "Wings"]).load(None)
    assert data.test is not None
    assert data.classes == ("candidate-1", "candidate-2", "candidate-3")
    assert data.vocabulary == 1000
    assert data.pool.groups == ("heat", "heat", "Wings", "Wings", "other", "other")
    assert data.pool.strata is not None
    assert data.pool.strata.tolist() == [0, 0, 1, 1, 2, 2]
    texts = token_ids(
        ["heat & fire", "heat & sun", "wings & a bird", "wings & planes", "law & courts", "law & tax"],
        vocabulary=1000,
        length=4,
    )
    titles = token_ids(
        [f"on {word} ." for word in ("heat", "heat", "wings", "wings", "law", "law")], vocabulary=1000, length=4
    )
    assert torch.equal(data.pool.inputs[:, 0], titles)
    for row in range(6):
        shown = [_row(text, texts) for text in data.pool.inputs[row, 1:]]
        # Its own text is the one relevant; the other one of its topic comes before those of other topics.
        assert data.pool.targets[row].tolist() == [float(one == row) for one in shown]
        assert {row, row ^ 1} < set(shown)
        assert len(set(shown)) == 3
    assert torch.equal(data.test.inputs[:, 0], token_ids(["what is hot", "what flies"], vocabulary=1000, length=4))
    # The first query shows one of its two relevant documents (half of three), and the one judged not relevant.
    first, second = (
        {_row(text, texts): value for text, value in zip(inputs[1:], targets.tolist(), strict=True)}
        for inputs, targets in zip(data.test.inputs, data.test.targets, strict=True)
    )
    assert (first.keys() & {0, 1}, first[4]) in (({0}, 0), ({1}, 0))
    assert sorted(first.values()) in ([0, 0, 1], [0, 0, 3])
    assert (second[3], second[2]) == (1, 0)


def _row(text: torch.Tensor, texts: torch.Tensor) -> int:
    return int((texts == text).all(1).nonzero())


def test_without_topics(tmp_path: Path) -> None:
    data = tiny(written(tmp_path)).load(None)
    assert data.pool.groups == ()
    assert data.pool.strata is None


def test_documents_without_a_title_or_a_text_are_left_out(tmp_path: Path) -> None:
    more = DOCUMENTS + "<DOC><DOCNO>7</DOCNO><TITLE></TITLE><TEXT>lost</TEXT></DOC>"
    data = tiny(written(tmp_path, **{"docs.xml": more, "qrels.txt": JUDGEMENTS + "2 0 7 1\n"})).load(None)
    assert len(data.pool) == 6
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    assert tiny(written(nobody, **{"qrels.txt": "1 0 1 0\n"})).load(None).test is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"docs.xml": "nothing"}, "expected <doc>"),
        ({"queries.xml": "<xml></xml>"}, "expected <top>"),
        ({"qrels.txt": "\n"}, "expected judgements"),
        ({"qrels.txt": "1 0 1\n"}, "line 1, '1 0 1': expected \"topic 0 document relevance\""),
        ({"qrels.txt": "1 0 1 yes\n"}, "line 1, '1 0 1 yes'"),
        ({"qrels.txt": "7 0 1 1\n"}, "query 7 and document 1: expected one of 2 queries and 6 documents.*'numbering'"),
        ({"qrels.txt": "1 0 99 1\n"}, "document 99"),
        ({"docs.xml": DOCUMENTS.replace("<docno>3</docno>", "")}, "expected a <docno> that is not empty"),
        ({"queries.xml": QUERIES.replace("what flies", "")}, "expected a <title> that is not empty"),
    ],
)
def test_broken_collections(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny(written(tmp_path, **changes)).load(None)


def test_too_few_documents_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="6 documents that have a title and a text: expected at least 8"):
        tiny(written(tmp_path), candidates=4).load(None)
    with pytest.raises(ConfigError, match="candidates=1"):
        SearchTask("x", candidates=1)
    with pytest.raises(ConfigError, match="expected different words, none of them 'other'"):
        SearchTask("x", topics=("heat", "Other"))
    with pytest.raises(ConfigError, match=r"tasks\.t\.numbering"):
        tiny(tmp_path, numbering="file")


def test_prepare_and_measure() -> None:
    task = SearchTask("x")
    tokens = torch.tensor([[[1, 2], [2, 0]]])
    assert task.prepare(tokens, tokens) is tokens
    measures = task.measure(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), ("a", "b"))
    assert measures == {"ndcg@10": pytest.approx(0.6309298), "mrr": 0.5}  # 1 / log₂3


def test_real_cranfield(data_dir: Path) -> None:
    data = SearchTask("cranfield", topics=("boundary", "shock", "wing", "heat", "buckling")).load(data_dir)
    assert data.test is not None
    assert data.pool.inputs.shape == (1398, 17, 64)  # two of 1,400 documents are empty
    assert data.test.inputs.shape == (225, 17, 64)
    assert set(data.pool.targets.sum(1).tolist()) == {1.0}
    assert int((data.test.targets > 0).sum(1).max()) == 8
    # The order of candidates tells nothing: even scores find a title's abstract in 10 of 16 by chance.
    even = output_kind("ranking").loss(torch.zeros(1398, 16), data.pool.targets)
    assert float(even) == pytest.approx(torch.tensor(16.0).log().item())
    assert 60 < int(data.pool.targets.sum(0).min()) <= int(data.pool.targets.sum(0).max()) < 120
