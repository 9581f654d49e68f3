"""Knowledge that crosses tasks in a run: proxy samples that tasks share, and what is merged over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedstill.common.data.federation import federate
from fedstill.common.errors import ConfigError, DataError, UnsupportedError
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import ROUND
from fedstill.common.scenario import Scenario, parse
from fedstill.common.task import Examples, TaskData

Play = Callable[..., Any]

DIGIT = {"kind": "image", "source": "digits", "samples": 300, "models": ["mlp-small"]}
PARITY = {**DIGIT, "merge": ["even: 0 2 4 6 8", "odd: 1 3 5 7 9"]}


def scenario(**changes: Any) -> Scenario:
    shared = {"samples": 50, "shared": "images"}
    table: dict[str, Any] = {
        "clients": {"count": 4},
        "rounds": {"count": 2, "backoff": 0},
        "training": {"epochs": 1, "batch-size": 16},
        "algorithm": {"name": "fedmd"},
        "teacher": {"kind": "multitask"},
        "tasks": {
            "digit": {**DIGIT, "clients": [0, 1, 2], "proxy": shared},
            "parity": {**PARITY, "clients": [2, 3], "proxy": shared},
        },
    }
    return parse({**table, **changes})


def test_tasks_of_the_same_inputs_share_their_proxy_samples() -> None:
    shares = federate(scenario(), None).tasks

    digit, parity = shares["digit"], shares["parity"]
    assert digit.proxy.digest == parity.proxy.digest
    assert torch.equal(digit.proxy_targets % 2, parity.proxy_targets)
    # What is public for one task is private for nobody.
    public = {tuple(row) for row in digit.proxy.inputs.flatten(1).tolist()}
    for share in shares.values():
        for client in share.clients.values():
            assert not public & {tuple(row) for row in client.private.inputs.flatten(1).tolist()}


def test_without_sharing_each_task_has_its_own() -> None:
    own = {"samples": 50}
    tasks = {
        "digit": {**DIGIT, "clients": [0, 1, 2], "proxy": own},
        "parity": {**PARITY, "clients": [2, 3], "proxy": own},
    }

    shares = federate(scenario(tasks=tasks), None).tasks

    assert shares["digit"].proxy.digest != shares["parity"].proxy.digest


def test_a_run_of_two_tasks_with_one_teacher(play_small: Play) -> None:
    played = play_small(scenario=scenario())

    assert [record["rejected"] for record in played.records] == [[]] * 4
    for record in played.records[1:]:
        assert set(record["tasks"]["digit"]["clients"]) == {"client-0", "client-1", "client-2"}
        assert set(record["tasks"]["parity"]["clients"]) == {"client-2", "client-3"}
    tasks = played.states[-1].tasks
    bodies = [{key: value for key, value in task.model.items() if key.startswith("body")} for task in tasks.values()]
    assert all(torch.equal(value, bodies[1][key]) for key, value in bodies[0].items())
    assert tasks["parity"].knowledge.classes == ("even", "odd")


def test_rounds_of_tasks_that_share_are_about_the_same_samples(play_small: Play) -> None:
    shared = {"samples": 50, "per-round": 20, "shared": "images"}
    tasks = {
        "digit": {**DIGIT, "clients": [0, 1, 2], "proxy": shared},
        "parity": {**PARITY, "clients": [2, 3], "proxy": shared},
    }

    played = play_small(scenario=scenario(tasks=tasks))

    for state in played.states[1:3]:
        digit, parity = (state.tasks[name].knowledge for name in ("digit", "parity"))
        assert len(digit.samples) == 20
        np.testing.assert_array_equal(digit.samples, parity.samples)


def test_one_label_space_in_two_senses_is_merged_over_pairs(play_small: Play) -> None:
    """Clients of one task say "class 3" for sure, those of the other do not know: both learn the mean."""
    shared = {"samples": 40, "shared": "digits"}
    tasks = {
        "seen": {**DIGIT, "clients": [0, 1], "proxy": shared},
        "blurred": {**DIGIT, "samples": 290, "clients": [2, 3], "proxy": shared},
    }

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        from flwr.app import Array

        reply = inner(message, context)
        if message.metadata.message_type == ROUND:
            for name, record in reply.content.array_records.items():
                values = np.full_like(record["values"].numpy(), 0.1)
                if name == "knowledge.seen":
                    values[:] = np.eye(10, dtype=np.float32)[3]
                record["values"] = Array(values)
        return reply

    played = play_small(scenario=scenario(tasks=tasks, teacher={"kind": "consensus"}), tamper=tamper)

    data = federate(played.folder.scenario(), None).tasks
    assert data["seen"].proxy.digest != data["blurred"].proxy.digest
    assert torch.equal(data["seen"].proxy_targets, data["blurred"].proxy_targets)
    for name in ("seen", "blurred"):
        told = played.states[1].tasks[name].knowledge
        assert isinstance(told, SoftLabels)
        np.testing.assert_allclose(told.values[:, 3], 0.55, rtol=1e-6)
        np.testing.assert_allclose(told.values[:, 0], 0.05, rtol=1e-6)


def test_weights_of_different_tasks_are_never_merged(play_small: Play) -> None:
    played = play_small(scenario=scenario(algorithm={"name": "fedavg"}))

    shapes = {name: task.knowledge.weights["head.weight"].shape for name, task in played.states[-1].tasks.items()}
    assert shapes == {"digit": (10, 64), "parity": (2, 64)}


def test_what_does_not_go_together() -> None:
    tasks = {
        "digit": {**DIGIT, "clients": [0, 1], "proxy": {"samples": 50, "shared": "x"}},
        "parity": {**PARITY, "clients": [2, 3], "proxy": {"samples": 40, "shared": "x"}},
    }
    with pytest.raises(ConfigError, match=r"tasks.parity.proxy with 40 samples, 0 a round: expected 50 and 0, as task"):
        scenario(tasks=tasks)
    tasks["parity"] = {"kind": "tabular", "source": "wine", "models": ["mlp-small"], "clients": [2, 3]}
    tasks["parity"]["proxy"] = tasks["digit"]["proxy"]
    with pytest.raises(DataError, match="proxy samples of tasks 'digit' and 'parity': expected the same inputs, or"):
        federate(scenario(tasks=tasks), None)


def test_classes_that_are_told_as_one() -> None:
    for merge in (["even: 0 2", "odd: 1"], ["even: 0 2 4 6 8 9", "odd: 1 3 5 7 9"], ["all 0 1 2 3 4 5 6 7 8 9"]):
        tasks = {"parity": {**DIGIT, "merge": merge}}
        with pytest.raises(DataError, match="merge"):
            federate(scenario(tasks=tasks), None)


def test_a_task_that_no_client_has(play_small: Play) -> None:
    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        reply.content.config_records.pop("task.parity", None)
        return reply

    tasks = {
        "digit": {**DIGIT, "proxy": {"samples": 50}},
        "parity": {**PARITY, "clients": [2, 3], "proxy": {"samples": 50}},
    }
    with pytest.raises(UnsupportedError, match="task 'parity', which no client has: expected at least one"):
        play_small(scenario=scenario(tasks=tasks), tamper=tamper)


def test_raw_scores_where_there_is_padding() -> None:
    tagging = {"kind": "tagging", "source": "x", "models": ["bag-small"]}

    with pytest.raises(ConfigError, match="'fedmd' with raw scores and task 'names' of output kind 'token-level'"):
        scenario(algorithm={"name": "fedmd", "scores": "logits"}, tasks={"names": tagging})


def test_token_ids_outside_the_vocabulary() -> None:
    with pytest.raises(DataError, match="token id 7: expected whole numbers from 0 to 4"):
        TaskData(Examples(torch.tensor([[1, 7]]), torch.tensor([0])), ("a",), vocabulary=5)
