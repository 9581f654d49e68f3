from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedstill.common.errors import ConfigError, DataError
from fedstill.common.learning import Training, fit, predict
from fedstill.common.models import build_model, parameter_count
from fedstill.common.outputs import output_kind
from fedstill.common.scenario import build
from fedstill.common.task import TaskSpec
from fedstill.common.tasks.recommendation import RecommendationTask

RATINGS = [(1, 10, 5), (1, 2, 4), (1, 3, 1), (1, 5, 4), (2, 10, 4), (2, 2, 5), (3, 3, 1), (3, 10, 1), (3, 2, 2)]
USERS = "1|24|M|technician|85711\n2|53|F|other|94043\n3|7|M|wri\xf1er|32067\n"


def written(folder: Path, ratings: str = "", users: str = USERS) -> Path:
    lines = [f"{user}\t{item}\t{rating}\t881250949" for user, item, rating in RATINGS]
    (folder / "u.data").write_text(ratings or "\n".join(lines) + "\n")
    (folder / "u.user").write_text(users, encoding="latin-1")
    return folder


def tiny(source: Path, **options: object) -> RecommendationTask:
    task = build(RecommendationTask, {"source": str(source), "test-share": 0.0, **options}, "tasks.t")
    assert isinstance(task, RecommendationTask)
    return task


def test_shown_and_hidden_ratings(tmp_path: Path) -> None:
    data = tiny(written(tmp_path), owner="occupation").load(None)
    assert data.classes == ("2", "3", "5", "10")
    assert data.test is None
    # User 3 likes nothing, so that there is nothing to be found.
    assert data.pool.groups == ("technician", "other")
    whole = torch.tensor([[4.0, 1, 4, 5], [5, 0, 0, 4]])
    shown, relevance = data.pool.inputs, data.pool.targets
    assert (shown > 0).sum(1).tolist() == [2, 1]  # half of four, half of two
    assert torch.equal(shown[shown > 0], whole[shown > 0])
    assert torch.equal(relevance == -1, shown > 0)
    hidden = (whole > 0) & (shown == 0)
    assert torch.equal(relevance > 0, hidden & (whole >= 4))
    assert (relevance[~hidden & (shown == 0)] == 0).all()


def test_the_most_rated_items_and_other_owners(tmp_path: Path) -> None:
    few = tiny(written(tmp_path), items=2, owner="age").load(None)
    assert few.classes == ("2", "10")  # three ratings each
    assert few.pool.groups == ("20s", "50s")
    assert tiny(tmp_path, owner="gender").load(None).pool.groups == ("M", "F")
    assert tiny(tmp_path).load(None).pool.groups == ()
    more = tiny(tmp_path, liked=2, owner="age").load(None)
    assert set(more.pool.groups) <= {"20s", "50s", "00s"}


def test_ratings_of_later_sets(tmp_path: Path) -> None:
    rows = "\n".join(f"{user},{item},{rating}.0,964982703" for user, item, rating in RATINGS)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows + "\n")
    later = tiny(tmp_path).load(None)
    folder = tmp_path / "old"
    folder.mkdir()
    assert torch.equal(later.pool.inputs, tiny(written(folder)).load(None).pool.inputs)
    with pytest.raises(DataError, match=r"expected u\.user for owner = 'age'"):
        tiny(tmp_path, owner="age").load(None)


@pytest.mark.parametrize(
    ("ratings", "users", "message"),
    [
        ("1\t2\t6\t0\n", USERS, "'6' in row 1, column '2': expected a number from 0.5 to 5"),
        ("1\t2\t0\t0\n", USERS, "'0' in row 1"),
        ("1\t2\tgood\t0\n", USERS, "'good' in row 1"),
        ("1\t2\t5\n", "4|1|F|x|1\n", "expected a user with two ratings, one of 4"),
        ("1\t2\t5\n1\t3\t5\n", "4|1|F|x|1\n", "user 1 of u.data: expected one of 1 users of u.user"),
        ("1|2|5\n", USERS, "column '2': expected a column of the file"),
    ],
)
def test_damaged_files(tmp_path: Path, ratings: str, users: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny(written(tmp_path, ratings, users), owner="occupation").load(None)


def test_missing_files_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected u\.data or ratings\.csv"):
        tiny(tmp_path).load(None)
    with pytest.raises(DataError, match="data 'none'"):
        RecommendationTask("none").load(tmp_path)
    with pytest.raises(ConfigError, match="hidden=0"):
        RecommendationTask("x", hidden=0)
    with pytest.raises(ConfigError, match=r"liked=6\.0: expected at most highest=5\.0"):
        RecommendationTask("x", liked=6.0)
    with pytest.raises(ConfigError, match=r"tasks\.t\.owner"):
        tiny(tmp_path, owner="zip")


def test_prepare_and_measure() -> None:
    task = RecommendationTask("x")
    assert task.prepare(torch.tensor([[5.0, 0.0, 1.0]]), torch.ones(1, 3)).tolist() == [[1, 0, pytest.approx(0.2)]]
    # The best score is of an item that the user has shown, and does not count.
    measures = task.measure(torch.tensor([[9.0, 2.0, 1.0]]), torch.tensor([[-1.0, 0.0, 1.0]]), ("a", "b", "c"))
    assert measures == {"ndcg@10": pytest.approx(0.6309298), "hit-rate@10": 1.0}


@pytest.mark.parametrize(("model", "count"), [("autoencoder-small", 5_224), ("autoencoder-large", 289_440)])
def test_weights_of_autoencoders(model: str, count: int) -> None:
    spec = TaskSpec("r", "ranking", "tabular", tuple(map(str, range(40))), (40,))
    # 40 · 64 + 64 + 64 · 40 + 40; with 600, 200 and 600 units alike.
    assert parameter_count(build_model(model, spec, seed=1)) == count


def test_an_autoencoder_learns_what_goes_together() -> None:
    # Who shows an even item likes the next odd one.
    first = torch.arange(64) % 20 * 2
    inputs = torch.zeros(64, 40).scatter_(1, first[:, None], 1.0)
    targets = torch.zeros(64, 40).scatter_(1, first[:, None] + 1, 1.0) - inputs
    spec = TaskSpec("r", "ranking", "tabular", tuple(map(str, range(40))), (40,))
    model = build_model("autoencoder-small", spec, seed=1)
    training = Training(batch_size=16, learning_rate=0.02)
    task = RecommendationTask("x")
    before = task.measure(predict(model, inputs, training=training), targets, spec.classes)["ndcg@10"]
    fit(model, inputs, (targets,), output_kind("ranking").loss, training=training, epochs=30, seed=1)
    after = task.measure(predict(model, inputs, training=training), targets, spec.classes)["ndcg@10"]
    assert before < 0.5
    assert after > 0.95
    # A profile counts by its direction, not by how much its user rates.
    assert torch.allclose(model(inputs * 3), model(inputs))
