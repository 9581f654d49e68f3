"""A client that listens as far as it does it good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fedstill.client.adaptive import Adaptive, blend
from fedstill.common.errors import ConfigError

Play = Callable[..., Any]

CURVE = torch.tensor([[0.5, -1.0], [0.8, -0.6]], dtype=torch.float64)
ON = {"training.adaptive": True, "rounds.count": 4, "training.epochs": 2}


def test_a_teacher_that_does_harm_gets_half_the_weight_and_a_good_one_gets_it_back() -> None:
    start = Adaptive(CURVE, {})

    worse = start.heard(1, (0.4, -1.0))
    assert worse.weight == 0.5
    assert worse.heard(2, (0.7, -0.1)).weight == 0.25
    assert worse.heard(2, (0.9, -9.0)).weight == 1.0
    # Among equals the lower loss decides, and a tie is no harm.
    assert start.heard(1, (0.5, -1.1)).weight == 0.5
    assert start.heard(1, (0.5, -1.0)).weight == 1.0
    # Who has no held-out examples listens to everything.
    assert start.heard(1, (float("nan"), float("nan"))).weight == 1.0


def test_it_survives_the_store() -> None:
    one = Adaptive(CURVE, {"head.bias": torch.tensor([1.0, 2.0])}, 0.25)

    back = Adaptive.from_tensors(one.tensors())

    assert back is not None
    assert (back.weight, back.curve.tolist()) == (0.25, CURVE.tolist())
    assert torch.equal(back.alone["head.bias"], torch.tensor([1.0, 2.0]))
    assert Adaptive.from_tensors({}) is None


def test_blending_is_linear_in_the_weight() -> None:
    model = nn.Linear(1, 1, bias=False)
    for weight, expected in ((1.0, 3.0), (0.25, 1.5), (0.0, 1.0)):
        model.load_state_dict({"weight": torch.tensor([[3.0]])})
        blend(model, {"weight": torch.tensor([[1.0]])}, weight)
        assert model.weight.item() == expected


def flipped(message: Message, context: Context, inner: ClientApp) -> Message:
    """Clients that say the opposite of what they know: all learn from a teacher that is wrong."""
    reply = inner(message, context)
    records = reply.content.array_records if reply.has_content() else {}
    if "knowledge.wine" in records and "values" in records["knowledge.wine"]:
        from flwr.app import Array

        values = records["knowledge.wine"]["values"].numpy()
        records["knowledge.wine"]["values"] = Array(np.roll(values, 1, axis=1))
    return reply


def finals(played: Any, key: str) -> list[float]:
    return [client[key] for client in played.records[-1]["tasks"]["wine"]["clients"].values()]


@pytest.mark.parametrize("method", ["fedmd", "fedstill"])
def test_a_teacher_that_is_wrong_does_no_harm(play_small: Play, method: str) -> None:
    changes = {"tasks.wine.test": 0, "training.learning-rate": 0.05, "algorithm": {"name": method}}
    off = play_small({**ON, **changes, "training.adaptive": False}, tamper=flipped, name="off")
    on = play_small({**ON, **changes}, tamper=flipped, name="on")

    alone = [client["alone.accuracy"] for client in on.records[0]["tasks"]["wine"]["clients"].values()]
    assert np.mean(finals(off, "final.accuracy")) < np.mean(alone) - 0.2
    assert np.mean(finals(on, "final.accuracy")) > np.mean(alone) - 0.05
    weights = [client["trained.teacher-weight"] for client in on.records[-2]["tasks"]["wine"]["clients"].values()]
    assert min(weights) < 1
    assert sum(finals(on, "final.kept-alone")) > 0


def test_off_changes_nothing_and_says_nothing(play_small: Play) -> None:
    played = play_small({"rounds.count": 1})

    assert not any("teacher-weight" in key for key in played.records[1]["tasks"]["wine"]["clients"]["client-0"])


def test_a_client_that_lost_its_store_listens_as_usual(play_small: Play, tmp_path: Any) -> None:
    def forgetful(message: Message, context: Context, inner: ClientApp) -> Message:
        import shutil

        shutil.rmtree(tmp_path / "run" / "clients" / "client-1", ignore_errors=True)
        return inner(message, context)

    played = play_small(ON, tamper=forgetful)

    clients = played.records[2]["tasks"]["wine"]["clients"]
    assert "trained.teacher-weight" not in clients["client-1"]
    assert "trained.teacher-weight" in clients["client-0"]


def test_what_it_needs(small: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"training.adaptive with alone = false: .*\(set alone = true\)"):
        small({"training.adaptive": True, "alone": False})
    with pytest.raises(ConfigError, match=r"training.adaptive with tasks.wine.holdout=0: expected held-out examples"):
        small({"training.adaptive": True, "tasks.wine.holdout": 0.0})


def test_a_warmup_is_for_the_first_round_and_for_the_floor_too(play_small: Play) -> None:
    """With one round more epochs at its start are as many epochs; with two they are not."""
    for rounds, same in ((1, True), (2, False)):
        warm = play_small({"rounds.count": rounds, "training.warmup": 3}, name=f"warm-{rounds}")
        long = play_small({"rounds.count": rounds, "training.epochs": 4}, name=f"long-{rounds}")
        for step, when in ((0, "alone"), (rounds, "trained")):
            ours, theirs = (
                [
                    client[f"{when}.class-accuracy"]
                    for client in played.records[step]["tasks"]["wine"]["clients"].values()
                ]
                for played in (warm, long)
            )
            assert (ours == theirs) == same
