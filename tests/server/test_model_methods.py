"""Methods that keep a model beside the students: runs with absent clients, several models, and interruptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedstill.common.errors import QuorumError
from fedstill.common.messages import ROUND
from fedstill.common.registry import ALGORITHMS

Play = Callable[..., Any]

METHODS = ("mhat", "fml", "fedaux", "fedet")


def plan(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "algorithm": {"name": name},
        "rounds.count": 3,
        "tasks.wine.teacher": "mlp-small",
        "tasks.wine.models": models(name),
        **changes,
    }


def models(name: str) -> list[str]:
    if ALGORITHMS.get(name).homogeneous:
        return ["mlp-small"]
    # Last layers of one width, or any models at all.
    return ["autoencoder-small", "mlp-small"] if name == "fedet" else ["mlp-medium", "mlp-small"]


def round_of(message: Message) -> int:
    return int(str(message.content.config_records["fedstill"]["round"]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("codec", ["raw", "fp16"])
def test_with_absent_clients_and_missing_classes(name: str, codec: str, play_small: Play) -> None:
    changes: dict[str, Any] = {
        "clients.cohort": 0.5,
        "codec": codec,
        "tasks.wine.partition": {"kind": "pathological", "classes": 2, "minimum": 1},
    }
    played = play_small(plan(name, **changes))

    assert [record["rejected"] for record in played.records] == [[]] * 5
    assert [len(record["accepted"]) for record in played.records] == [4, 2, 2, 2, 4]
    # The server's model learns from round to round, and is measured.
    curve = [record["tasks"]["wine"]["server"]["accuracy"] for record in played.records[1:4]]
    assert len(curve) == 3
    roster = played.folder.config()["roster"].values()
    assert {client["wine"]["model"] for client in roster} == set(models(name))


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_goes_on_with_the_same_numbers(name: str, play_small: Play) -> None:
    changes = plan(name, **{"clients.cohort": 0.75, "clients.quorum": 1.0, "rounds.attempts": 1})
    down = True

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        if down and message.metadata.message_type == ROUND and round_of(message) == 3:
            raise RuntimeError("no power")
        return inner(message, context)

    clean = play_small(changes, name="clean")
    with pytest.raises(QuorumError):
        play_small(changes, tamper=tamper)
    down = False
    resumed = play_small(changes)

    assert [record["tasks"] for record in resumed.records] == [record["tasks"] for record in clean.records]
    one, other = (played.states[-1].tasks["wine"].knowledge for played in (resumed, clean))
    assert one.header() == other.header()
    assert all(np.array_equal(one.arrays()[key], array) for key, array in other.arrays().items())
