from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedstill.client.app import app, client_app
from fedstill.client.guard import Guard
from fedstill.client.holdings import simulated
from fedstill.client.node import DATA_VARIABLE, STORE_VARIABLE, default_store
from fedstill.common import __version__, introduction, records, wire
from fedstill.common.codecs.raw import Raw
from fedstill.common.errors import ConfigError, DataError, Reason
from fedstill.common.learning import Training
from fedstill.common.messages import ALONE, DESCRIBE, FINISH, ROUND, Method, Order, Question, Refusal, TaskOrder
from fedstill.common.scenario import ProxyPlan, Scenario, TaskPlan, dump, to_toml
from fedstill.common.tasks.image import ImageTask
from fedstill.common.tasks.tabular import TabularTask

Small = Callable[..., Scenario]
PLAN = TaskPlan(task=TabularTask(source="wine"), models=("linear-softmax",), proxy=ProxyPlan(samples=40))


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def context(
    run_config: Mapping[str, Any] = {}, *, node_config: Mapping[str, Any] = {"partition-id": 1, "num-partitions": 4}
) -> Context:
    return Context(1, 2, dict(node_config), RecordDict(), dict(run_config))


def question(kind: str, content: RecordDict) -> Message:
    message = Message(content, 2, kind)
    message.metadata.__dict__["_message_id"] = "question"
    return message


def asked() -> RecordDict:
    return introduction.write_question(Question(__version__, {}))


def refusal(reply: Message) -> Refusal:
    """Why a client did not do what it was asked."""
    told = introduction.read_refusal(reply.content)
    assert told is not None
    return told


def order(scenario: Scenario, number: int = 1, *, run: str = "run-1", version: int = 0) -> RecordDict:
    held = simulated(scenario, 1, None).tasks["wine"]
    method = Method("fedmd", {}, Training(epochs=1), Raw())
    task = TaskOrder(held.proxy.digest, np.arange(40))
    return records.write_order(Order(run, number, 2, 1, 1, version, method, {"wine": task}))


def toml(scenario: Scenario) -> dict[str, str]:
    return {"toml": to_toml(dump(scenario))}


def test_a_client_describes_itself(small: Small) -> None:
    reply = app(question(DESCRIBE, asked()), context(toml(small())))

    told = introduction.read_description(reply.content)
    assert told.client == "client-1"
    assert told.tasks["wine"].model == "mlp-small"


@pytest.mark.parametrize(("kind", "number"), [(ALONE, 0), (ROUND, 1), (FINISH, 3)])
def test_a_client_works(small: Small, tmp_path: Path, kind: str, number: int) -> None:
    scenario, own = small(), context(toml(small()))

    reply = app(question(kind, order(scenario, number)), own)

    assert reply.metadata.reply_to_message_id == "question"
    head = wire.opened(reply.content).config_records["fedstill"]
    assert (head["client"], head["run"], head["round"], head["version"]) == ("client-1", "run-1", number, 0)
    kept = {path.stem for path in (tmp_path / "store").rglob("*.safetensors")}
    # Flower's own state holds a pointer only: what is large is lost there.
    pointer = dict(own.state.config_records["student"])
    assert kept == (set() if kind == ALONE else {f"student-{number:06d}-{pointer['digest']!s}"})
    assert pointer == {"run": "run-1", "version": number, "digest": pointer["digest"]}
    assert bool(pointer["digest"]) == (kind != ALONE)
    assert set(own.state) == {"student"}


def test_students_lie_in_a_folder_of_run_and_client(small: Small, tmp_path: Path) -> None:
    scenario = small()

    app(question(ROUND, order(scenario)), context(toml(scenario)))
    assert len(list((tmp_path / "store" / "run-1" / "client-1").iterdir())) == 1

    node = {"partition-id": 1, "num-partitions": 4, "store": str(tmp_path / "engine")}
    app(question(ROUND, order(scenario)), context(toml(scenario), node_config=node))
    assert len(list((tmp_path / "engine" / "client-1").iterdir())) == 1


def test_the_student_survives_the_process_not_the_context(small: Small) -> None:
    scenario = small()
    app(question(ROUND, order(scenario)), context(toml(scenario)))

    reply = app(question(ROUND, order(scenario, 2, version=1)), context(toml(scenario)))

    assert wire.opened(reply.content).config_records["fedstill"]["version"] == 1


@pytest.mark.parametrize("run", ["../up", "/etc", "", "..", "a/b", "x" * 200])
def test_a_server_cannot_choose_a_place_outside_the_store(small: Small, tmp_path: Path, run: str) -> None:
    scenario = small()
    told = refusal(app(question(ROUND, order(scenario, run=run)), context(toml(scenario))))
    assert told.reason is Reason.MALFORMED
    assert "expected the name of a folder" in told.detail
    assert not (tmp_path / "store").exists()


def test_another_protocol_is_refused(small: Small) -> None:
    for kind, content in ((DESCRIBE, asked()), (ROUND, order(small()))):
        content.config_records["fedstill"]["protocol"] = 0
        told = refusal(app(question(kind, content), context(toml(small()))))
        assert told.reason is Reason.PROTOCOL
        assert "install the same version of fedstill on both sides" in told.detail


def test_a_node_needs_a_number(small: Small) -> None:
    for node in ({}, {"partition-id": "one"}):
        with pytest.raises(ConfigError, match="expected the client's number"):
            app(question(DESCRIBE, asked()), context(toml(small()), node_config=node))


def test_the_scenario_comes_from_flowers_run_config() -> None:
    config = {"scenario": "digits", "set": "clients.count=4 training.epochs=1", "algorithm.name": "dsfl", "seed": ""}

    reply = app(question(DESCRIBE, asked()), context(config))

    assert introduction.read_description(reply.content).tasks["digits"].model == "cnn-small"
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        app(question(DESCRIBE, asked()), context({"scenario": "digit"}))


def test_the_data_folder_comes_from_run_config_or_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Small
) -> None:
    rows = "\n".join(f"{row % 7},{row % 5},{'yes' if row % 2 else 'no'}" for row in range(120))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "t.csv").write_text("x,y,label\n" + rows)
    (tmp_path / "b" / "t.csv").write_text("x,y,label\n" + rows + "\n1,1,maybe")
    task = {"kind": "tabular", "source": "t.csv", "models": ["linear-softmax"], "proxy": {"samples": 20}}
    scenario = small({"tasks.wine": task})
    ask = question(DESCRIBE, asked())

    with pytest.raises(DataError, match="name the folder of data with --data-dir or FEDSTILL_DATA"):
        app(ask, context(toml(scenario)))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "a"))
    told = introduction.read_description(app(ask, context(toml(scenario))).content)
    assert told.tasks["wine"].classes == ("no", "yes")
    own = context({**toml(scenario), "data-dir": str(tmp_path / "b")})
    assert introduction.read_description(app(ask, own).content).tasks["wine"].classes == ("maybe", "no", "yes")


def test_an_app_of_ones_own_names_its_task_and_model() -> None:
    ours = client_app(task=PLAN, model="mlp-medium")

    told = introduction.read_description(ours(question(DESCRIBE, asked()), context({"seed": 7})).content)
    other = introduction.read_description(ours(question(DESCRIBE, asked()), context({"seed": 8})).content)

    assert told.tasks["tabular"].model == "mlp-medium"
    assert told.tasks["tabular"].proxy_digest != other.tasks["tabular"].proxy_digest
    plain = client_app(task=ImageTask(), model="linear-softmax")
    reply = plain(question(DESCRIBE, asked()), context({"seed": 7}))
    assert introduction.read_description(reply.content).tasks["image"].input_shape == (1, 8, 8)


def test_an_app_of_ones_own_has_its_guard(small: Small) -> None:
    strict = client_app(guard=Guard(frozenset()))

    told = refusal(strict(question(ROUND, order(small())), context(toml(small()))))
    assert told.reason is Reason.REFUSED
    assert "this client lets out nothing" in told.detail


def test_one_thread_works(small: Small) -> None:
    torch.set_num_threads(2)

    app(question(DESCRIBE, asked()), context(toml(small())))

    assert torch.get_num_threads() == 1


def test_students_are_kept_at_home_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_store() == tmp_path / "store"
    monkeypatch.delenv(STORE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store() == tmp_path / "home" / ".local" / "state" / "fedstill"


def test_an_order_that_is_none(small: Small) -> None:
    content = order(small())
    content.config_records["fedstill"]["method"] = json.dumps({"algorithm": "fedmd"})
    told = refusal(app(question(ROUND, content), context(toml(small()))))
    assert "the order's method: expected algorithm, options and training" in told.detail
    told = refusal(app(question(ROUND, RecordDict({"x": ConfigRecord({})})), context(toml(small()))))
    assert "expected a record 'fedstill'" in told.detail
