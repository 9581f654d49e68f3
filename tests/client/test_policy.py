"""What a site's policy does to orders and answers, each limit by itself, through the ClientApp."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open

from fedstill.client.guard import Guard, site_guard
from fedstill.client.policy import Policy
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.codecs.fp16 import FP16
from fedstill.common.errors import Reason
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import ALONE, FINISH, Order, Refusal
from fedstill.common.scenario import options

if TYPE_CHECKING:
    from tests.client.conftest import Party

Make = Callable[..., "Party"]
Change = Callable[[Order], Order]


def _training(**changes: Any) -> Change:
    return lambda order: replace(order, method=replace(order.method, training=Training(**changes)))


def _options(**changes: Any) -> Change:
    told = options(FedMD())
    return lambda order: replace(order, method=replace(order.method, options={**told, **changes}))


def _samples(count: int) -> Change:
    def change(order: Order) -> Order:
        tasks = {name: replace(task, samples=np.arange(count)) for name, task in order.tasks.items()}
        return replace(order, tasks=tasks)

    return change


def _as_it_is(order: Order) -> Order:
    return order


LIMITS: dict[str, tuple[dict[str, Any], Change, Change, str]] = {
    "knowledge": (
        {"knowledge": ["soft-labels"]},
        lambda order: replace(order, method=replace(order.method, algorithm="fedavg")),
        _as_it_is,
        "knowledge of kind 'parameters': this client lets out soft-labels",
    ),
    "algorithms": (
        {"algorithms": ["fedmd", "fedstill"]},
        lambda order: replace(order, method=replace(order.method, algorithm="dsfl")),
        _as_it_is,
        "algorithm 'dsfl': this client takes part with fedmd, fedstill (see policy.algorithms)",
    ),
    "codecs": (
        {"codecs": ["fp16"]},
        _as_it_is,
        lambda order: replace(order, method=replace(order.method, codec=FP16())),
        "codec 'raw': this client takes part with fp16 (see policy.codecs)",
    ),
    "samples-per-round": ({"samples-per-round": 30}, _as_it_is, _samples(30), "public samples: 40: this client allows"),
    "max-rounds": (
        {"max-rounds": 9},
        lambda order: replace(order, rounds=10),
        _as_it_is,
        "rounds: 10: this client allows 9 (ask for less, or raise policy.max-rounds there)",
    ),
    "max-epochs, of training": (
        {"max-epochs": 3},
        _training(epochs=2, warmup=2),
        _training(epochs=2, warmup=1),
        "training.epochs with warmup: 4: this client allows 3",
    ),
    "max-epochs, of the method": (
        {"max-epochs": 3},
        _options(**{"digest-epochs": 4}),
        _options(**{"digest-epochs": 3}),
        "algorithm.digest-epochs: 4: this client allows 3",
    ),
    "message-bytes": (
        {"message-bytes": 700},
        _as_it_is,
        _samples(10),
        "bytes of an answer: ",
    ),
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit(party: Make, what: str, caplog: pytest.LogCaptureFixture) -> None:
    policy, too_much, just_right, message = LIMITS[what]
    one = party()
    one.change(policy=policy)
    caplog.set_level(logging.WARNING, "fedstill")

    told = one.refusal(too_much(one.order(1)))

    assert told.reason is Reason.REFUSED
    assert told.detail.startswith(message)
    # The site's administrator reads the same, with the run, the round and the node.
    assert f"run run, train.round -, node 7: refused: {told.detail}" in caplog.text
    assert one.answer(just_right(one.order(2, version=0))).tasks["wine"].knowledge is not None


def test_an_order_that_is_refused_counts_for_nothing(party: Make) -> None:
    one = party()
    one.change(policy={"algorithms": ["fedmd"], "rounds-per-day": 1})
    other = replace(one.order(1), method=replace(one.order(1).method, algorithm="dsfl"))

    for _ in range(3):
        assert "algorithm 'dsfl'" in one.refusal(other).detail

    one.answer(one.order(1))


def test_rounds_a_day(party: Make) -> None:
    one = party()
    one.change(policy={"rounds-per-day": 2})

    one.answer(one.order(0, version=0), ALONE)
    one.answer(one.order(1))
    one.answer(replace(one.order(1), attempt=2))
    told = one.refusal(one.order(2))

    assert told.reason is Reason.REFUSED
    assert told.detail.startswith("2 orders in the last 24 hours: this client works on 2 (policy.rounds-per-day)")
    assert one.students() == ["student-000001"]
    # Another run is no way around it, nor is the end of this one.
    assert "2 orders" in one.refusal(one.order(1, run="other")).detail
    assert "2 orders" in one.refusal(one.order(10, version=1), FINISH).detail
    assert isinstance(one.describe(), Refusal) is False


def test_public_samples_that_nobody_pinned(party: Make) -> None:
    one = party()
    pinned = one.pack.tasks["wine"].proxy_digest
    assert one.site.policy.proxy_digests == (pinned,)
    one.change(policy={"proxy-digests": ["0123456789abcdef"]})

    for told in (one.describe(), one.refusal(one.order(1))):
        assert isinstance(told, Refusal)
        assert told.reason is Reason.REFUSED
        assert told.detail == (
            f"public samples {pinned} of task 'wine': this client answers about 0123456789abcdef only "
            "(look at the new pack, and pin it in policy.proxy-digests)"
        )
    one.change(policy={"proxy-digests": []})  # those of the pack, whatever they are
    one.answer(one.order(1))


def test_a_new_pack_with_other_samples_is_not_answered_about(party: Make) -> None:
    one, other = party(), party({"seed": 5}, folder="new")
    one.change(public=str(other.pack.folder))

    told = one.refusal(one.order(1))

    assert told.reason is Reason.REFUSED
    assert f"public samples {other.pack.tasks['wine'].proxy_digest} of task 'wine'" in told.detail


def test_measures_stay_where_they_are(party: Make) -> None:
    one = party()
    assert one.answer(one.order(1)).tasks["wine"].metrics
    one.change(policy={"measures": False})

    answer = one.answer(one.order(2))

    assert answer.tasks["wine"].metrics == {}
    assert answer.tasks["wine"].knowledge is not None


def test_a_copy_of_what_left(party: Make) -> None:
    one = party()
    one.answer(one.order(1))
    assert not (one.store / "sent").exists()
    one.change(copies=True)

    answer = one.answer(one.order(2))
    one.answer(one.order(10, version=2), FINISH)

    folder = one.store / "sent" / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["finish-10.safetensors", "round-2.safetensors"]
    with safe_open(folder / "round-2.safetensors", framework="np") as copy:
        told = json.loads(copy.metadata()["answer"])
        labels = answer.tasks["wine"].knowledge
        assert isinstance(labels, SoftLabels)
        assert np.array_equal(copy.get_tensor("wine.values"), labels.values)
        assert np.array_equal(copy.get_tensor("wine.samples"), labels.samples)
    assert (told["client"], told["round"]) == ("client-1", 2)
    assert told["tasks"]["wine"]["kind"] == "soft-labels"
    assert told["tasks"]["wine"]["examples"] == answer.tasks["wine"].examples
    assert told["tasks"]["wine"]["measures"] == answer.tasks["wine"].metrics


def test_a_site_guard_is_no_wider_than_the_apps() -> None:
    policy = Policy(knowledge=("soft-labels", "embeddings"))

    assert site_guard(policy, None).knowledge == {"soft-labels", "embeddings"}
    assert site_guard(policy, Guard()).knowledge == {"soft-labels"}
    assert site_guard(policy, None).policy is policy


def test_the_environment_adds_nothing_to_a_site(party: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party()
    one.change(policy={"knowledge": ["relations"]})
    monkeypatch.setenv("FEDSTILL_RELEASE", "soft-labels")

    assert "this client lets out relations" in one.refusal(one.order(1)).detail


# No round twice in two ways -------------------------------------------------------------------------------------------


def test_a_replay_gives_the_same_answer(party: Make) -> None:
    one = party()
    first = [one.send(one.order(number)) for number in (1, 2, 3)]

    for number in (2, 3, 1):
        again = one.send(one.order(number))
        assert again.config_records["fedstill"] == first[number - 1].config_records["fedstill"]
        assert again == first[number - 1]


def test_another_question_for_an_old_round_is_refused(party: Make) -> None:
    one = party()
    one.answer(one.order(1))
    one.answer(one.order(2))
    kept = one.students()

    for change in (_samples(10), _training(epochs=2), lambda order: replace(order, version=0)):
        told = one.refusal(change(one.order(2)))
        assert told.reason is Reason.REFUSED
        assert told.detail.startswith("round 2 of run 'run' with another content")
    assert one.students() == kept
    one.answer(one.order(3))


def test_another_answer_to_an_old_round_is_refused(party: Make) -> None:
    one = party()
    one.answer(one.order(1))
    one.answer(one.order(2))
    for path in (one.store / "runs" / "run").glob("student-000001-*"):
        path.unlink()

    told = one.refusal(one.order(2))

    assert told.reason is Reason.REFUSED
    assert told.detail.startswith("a second answer to round 2 of run 'run'")
