from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from small_runs import (
    TWO_TASKS,
    Play,
    Small,
    number_of,
    round_of,
    same_knowledge,
    soft,
)

from fedstill.common import records
from fedstill.common.errors import UnsupportedError
from fedstill.common.knowledge import Parameters
from fedstill.common.learning import Training, predict
from fedstill.common.messages import ROUND
from fedstill.common.models import build_model
from fedstill.common.tasks.tabular import TabularTask
from fedstill.server.holdings import simulated
from fedstill.server.state import RunState
from fedstill.server.teacher.pretrained import save_weights

# Methods and models -------------------------------------------------------------------------------------------------


def test_a_method_that_sends_weights_refuses_mixed_models(play_small: Play) -> None:
    with pytest.raises(UnsupportedError) as caught:
        play_small({"algorithm.name": "fedavg"})

    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("algorithm 'fedavg' with models linear-softmax (42 parameters), mlp-small (")
    assert "set tasks.wine.models to one model" in str(caught.value)


def test_a_method_that_sends_weights_refuses_partial_label_spaces(play_small: Play) -> None:
    changes = {
        "algorithm.name": "fedavg",
        "tasks.wine.models": ["linear-softmax"],
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }

    with pytest.raises(UnsupportedError, match=r"client-0, who knows 2 of 3 classes .*label-space = \"shared\""):
        play_small(changes)


def test_fedavg_averages_by_examples_and_the_server_measures_the_average(play_small: Play) -> None:
    sent: dict[int, tuple[int, dict[str, NDArray[Any]]]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if message.metadata.message_type == ROUND and round_of(message) == 2:
            arrays = {name: array.numpy() for name, array in reply.content.array_records["knowledge.wine"].items()}
            examples = int(reply.content.config_records["task.wine"]["num-examples"])  # type: ignore[arg-type]
            sent[number_of(context)] = (examples, arrays)
        return reply

    played = play_small({"algorithm.name": "fedavg", "tasks.wine.models": ["linear-softmax"]}, tamper=tamper)

    total = sum(examples for examples, _ in sent.values())
    state = played.states[2].tasks["wine"]
    assert isinstance(state.knowledge, Parameters)
    for name, array in state.knowledge.weights.items():
        expected = np.sum([examples / total * arrays[name].astype(float) for examples, arrays in sent.values()], axis=0)
        np.testing.assert_allclose(array.astype(float), expected, rtol=1e-6, atol=1e-7)
        assert np.array_equal(array, state.model[name].numpy())
    server = played.records[2]["tasks"]["wine"]["server"]
    assert set(server) == {"accuracy", "macro-f1", "auc", "class-accuracy"}


def _untrained(played: Any) -> float:
    """Accuracy of the server's model as it was before the first round."""
    own = simulated(played.folder.scenario(), None)["wine"]
    assert own.test is not None
    model = build_model(own.model, own.spec, seed=0)
    model.load_state_dict(dict(played.states[0].tasks["wine"].model))
    logits = predict(model, own.test.inputs, training=Training())
    return own.task.measure(logits, own.test.targets, own.spec.classes)["accuracy"]


def test_central_asks_no_client_and_trains_on_everything(play_small: Play) -> None:
    kinds: Counter[str] = Counter()

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        kinds[message.metadata.message_type] += 1
        return inner(message, context)

    played = play_small({"algorithm.name": "central", "rounds.count": 4}, tamper=tamper)

    assert kinds == {"query.describe": 4}
    assert all(record["cohort"] == [] for record in played.records)
    scores = [record["tasks"]["wine"]["server"]["accuracy"] for record in played.records[1:]]
    assert played.records[0]["tasks"]["wine"]["server"] == {}  # a model that has seen nothing is not measured
    assert scores[3] > _untrained(played) + 0.2
    assert scores[4] == scores[3]


def test_central_learns_the_right_labels_where_clients_number_their_own(play_small: Play) -> None:
    changes = {
        "algorithm.name": "central",
        "rounds.count": 4,
        "tasks.wine.partition": {"kind": "pathological", "classes": 1, "minimum": 1},
        "clients.count": 3,
    }
    shared = play_small({**changes, "tasks.wine.label-space": "shared"}, name="shared")
    own = play_small({**changes, "tasks.wine.label-space": "own"}, name="own")

    servers = [[record["tasks"]["wine"]["server"] for record in played.records] for played in (shared, own)]
    assert servers[0] == servers[1]
    assert servers[0][-1]["accuracy"] > 0.8


def test_local_exchanges_nothing(play_small: Play) -> None:
    played = play_small({"algorithm.name": "local"})

    assert all(state.tasks["wine"].knowledge is None for state in played.states)
    assert all(record["tasks"]["wine"]["server"] == {} for record in played.records)
    assert {key.split(".")[0] for key in played.records[2]["tasks"]["wine"]["clients"]["client-0"]} == {"trained"}


# Tasks and samples --------------------------------------------------------------------------------------------------


def test_several_tasks_in_one_run(play_small: Play) -> None:
    played = play_small(TWO_TASKS)

    roster = played.folder.config()["roster"]
    assert {client: sorted(tasks) for client, tasks in roster.items()} == {
        "client-0": ["wine"],
        "client-1": ["digits", "wine"],
        "client-2": ["digits", "wine"],
        "client-3": ["digits"],
    }
    for record in played.records:
        assert list(record["tasks"]["wine"]["clients"]) == ["client-0", "client-1", "client-2"]
        assert list(record["tasks"]["digits"]["clients"]) == ["client-1", "client-2", "client-3"]
    tasks = played.states[-1].tasks
    assert soft(tasks["wine"].knowledge).values.shape == (40, 3)
    assert soft(tasks["digits"].knowledge).values.shape == (50, 10)


def test_a_task_that_nobody_spoke_about_keeps_what_it_had(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND and round_of(message) == 2 and number_of(context) != 3:
            raise RuntimeError("away")
        return inner(message, context)

    played = play_small({**TWO_TASKS, "clients.quorum": 0.25}, tamper=tamper)

    assert played.records[2]["accepted"] == ["client-3"]
    before, after = played.states[1].tasks, played.states[2].tasks
    assert same_knowledge(before["wine"].knowledge, after["wine"].knowledge)
    assert not same_knowledge(before["digits"].knowledge, after["digits"].knowledge)


def test_label_spaces_meet_by_name(play_small: Play) -> None:
    changes = {
        "tasks.wine.label-space": "own",
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
        "teacher.kind": "model",
    }
    played = play_small(changes)

    roster = played.folder.config()["roster"]
    known = {client: tuple(tasks["wine"]["classes"]) for client, tasks in roster.items()}
    assert all(len(classes) == 2 for classes in known.values())
    assert set(itertools.chain(*known.values())) == {"class_0", "class_1", "class_2"}
    assert soft(played.states[1].tasks["wine"].knowledge).classes == ("class_0", "class_1", "class_2")
    for client, classes in known.items():
        measures = played.records[2]["tasks"]["wine"]["clients"][client]
        assert len(measures["trained.class-accuracy"]) == len(classes)
    assert played.records[2]["rejected"] == []


def test_each_round_is_about_its_own_proxy_samples(play_small: Play) -> None:
    asked: dict[int, set[tuple[int, ...]]] = {}

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if message.metadata.message_type == ROUND:
            samples = records.read_order(message.content).tasks["wine"].samples
            asked.setdefault(round_of(message), set()).add(tuple(samples.tolist()))
        return inner(message, context)

    played = play_small({"tasks.wine.proxy": {"samples": 40, "per-round": 15}}, tamper=tamper)

    drawn = {}
    for step in (1, 2):
        (drawn[step],) = asked[step]  # the same for everybody
        assert len(set(drawn[step])) == 15
        assert list(drawn[step]) == sorted(drawn[step])
        assert soft(played.states[step].tasks["wine"].knowledge).samples.tolist() == list(drawn[step])
    assert drawn[1] != drawn[2]


# Teachers -----------------------------------------------------------------------------------------------------------


def test_a_teacher_model_answers_in_place_of_the_consensus(play_small: Play) -> None:
    consensus = play_small({"rounds.count": 1}, name="consensus")
    model = play_small({"rounds.count": 1, "teacher.kind": "model", "teacher.epochs": 3}, name="model")

    told = soft(model.states[1].tasks["wine"].knowledge)
    assert model.records[1]["tasks"]["wine"]["clients"] == consensus.records[1]["tasks"]["wine"]["clients"]
    assert not same_knowledge(told, consensus.states[1].tasks["wine"].knowledge)
    state = model.states[1].tasks["wine"]
    spec = TabularTask(source="wine").load(None)
    assert spec.classes == told.classes
    assert any(not torch.equal(value, state_before(model, name)) for name, value in state.model.items())
    # What is measured of the consensus is the consensus, and of the teacher the teacher.
    before, after = (played.records[1]["tasks"]["wine"]["server"] for played in (consensus, model))
    assert before["consensus.accuracy"] == after["consensus.accuracy"]
    assert "accuracy" not in before
    assert 0 <= after["accuracy"] <= 1


def state_before(played: Any, name: str) -> torch.Tensor:
    found: RunState = played.states[0]
    return found.tasks["wine"].model[name]


def test_a_pretrained_teacher_teaches_in_the_first_round(play_small: Play, small: Small, tmp_path: Path) -> None:
    trained = play_small({"algorithm.name": "central", "rounds.count": 4, "tasks.wine.teacher": "mlp-small"}, name="c")
    own = simulated(small(), None)["wine"]
    model = build_model("mlp-small", own.spec, seed=0)
    model.load_state_dict(dict(trained.states[-1].tasks["wine"].model))
    weights = tmp_path / "teacher-wine.safetensors"
    save_weights(model, weights)

    played = play_small({"teacher.kind": "pretrained", "teacher.path": str(tmp_path / "teacher-{task}.safetensors")})

    first = soft(played.states[0].tasks["wine"].knowledge)
    with torch.no_grad():
        expected = torch.softmax(model.eval()(own.proxy.inputs), -1).numpy()
    np.testing.assert_allclose(first.values, expected, rtol=1e-6, atol=1e-7)
    measures = played.records[1]["tasks"]["wine"]["clients"]
    assert all("distilled.accuracy" in one for one in measures.values())
    server = [record["tasks"]["wine"]["server"]["accuracy"] for record in played.records]
    assert server[0] == trained.records[-1]["tasks"]["wine"]["server"]["accuracy"]
