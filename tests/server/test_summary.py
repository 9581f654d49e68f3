from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.errors import Reason
from fedstill.server import wording
from fedstill.server.admission import Rejection
from fedstill.server.folder import RunFolder
from fedstill.server.record import Attempt, StepRecord, Traffic
from fedstill.server.summary import Summary, main_measure, mean, number, summarise, summary

CONFIG = {
    "fedstill": "0.1.0",
    "labels": {"birds": ["owl", "tit"]},
    "roster": {
        "a": {"birds": {"model": "mlp", "parameters": 100, "examples": 7, "classes": ["owl", "tit"], "software": "x"}},
        "b": {"birds": {"model": "cnn", "parameters": 300, "examples": 9, "classes": ["owl"], "software": "x"}},
    },
    "scenario": {
        "name": "birds",
        "seed": 5,
        "algorithm": {"name": "fedmd"},
        "rounds": {"count": 2},
        "tasks": {"birds": {"kind": "birds"}},
    },
}


def step(kind: str, number: int, clients: dict[str, dict[str, float | list[float]]], **options: object) -> StepRecord:
    names = ["a", "b"]
    rejected = [Rejection("b", Reason.NOT_FINITE, "NaN")] if options.get("fails") else []
    attempt = Attempt(2 if options.get("again") else 1, names, ["a"] if rejected else names, rejected)
    return StepRecord(
        kind=kind,
        step=number,
        attempt=attempt,
        abandoned=[Attempt(1, names, [], [Rejection(n, Reason.NO_ANSWER, "late") for n in names])]
        if options.get("again")
        else [],
        traffic=Traffic({"a": 10 * number, "b": 20}, {"a": 40, "b": 60}),
        seconds=1.5,
        server={"birds": {"accuracy": 0.25 * number, "consensus.accuracy": 0.5}} if kind == "round" else {},
        clients={"birds": {name: dict(values) for name, values in clients.items()}},
    )


def records() -> list[StepRecord]:
    return [
        step("alone", 0, {"a": {"alone.own-accuracy": 1.0, "alone.accuracy": 0.25}, "b": {"alone.accuracy": 0.75}}),
        step("round", 1, {"a": {"trained.accuracy": 0.3}, "b": {"trained.accuracy": 0.7}}),
        step("round", 2, {"a": {"trained.accuracy": 0.4}}, fails=True, again=True),
        step("finish", 3, {"a": {"final.accuracy": 0.75}, "b": {"final.accuracy": 0.5}}),
    ]


def summarised(steps: list[StepRecord]) -> Summary:
    return summarise("run", CONFIG, [one.table() for one in steps])


def test_what_each_client_gained() -> None:
    (task,) = summarised(records()).tasks
    a, b = task.clients
    assert (a.name, a.model, a.parameters, a.examples, a.classes) == ("a", "mlp", 100, 7, ("owl", "tit"))
    assert (a.alone, a.after, a.gain) == (0.25, 0.75, 0.5)
    assert (b.alone, b.after, b.gain) == (0.75, 0.5, -0.25)
    assert (task.measure, task.alone, task.after, task.gain) == ("accuracy", 0.5, 0.625, 0.125)
    assert (task.gained, task.compared, task.teacher, task.consensus) == (1, 2, 0.5, 0.5)
    assert task.share
    assert task.classes == ("owl", "tit")


def test_what_it_cost() -> None:
    found = summarised(records())
    assert (found.up, found.down, found.seconds) == (10 + 20 + 30 + 4 * 20, 400, 6.0)
    a, b = found.traffic
    assert (a.rounds, a.up, a.down, a.fedavg) == (2, 15.0, 40.0, 400)
    assert (b.rounds, b.up, b.down, b.fedavg) == (2, 20.0, 60.0, 1200)
    assert (found.round_up, found.round_down, found.round_fedavg) == (17.5, 50.0, 800.0)
    assert found.saving == pytest.approx(1600 / 67.5)


def test_failures_are_counted_over_all_attempts() -> None:
    found = summarised(records())
    assert found.abandoned == 1
    assert found.rejections == {"no-answer": 2, "not-finite": 1}
    assert (found.rounds, found.planned, found.finished) == (2, 2, True)


def test_run_under_way_takes_the_last_private_training() -> None:
    found = summarised(records()[:3])
    (task,) = found.tasks
    assert not found.finished
    assert [client.after for client in task.clients] == [0.4, 0.7]
    assert found.tasks[0].alone == 0.5


def test_without_the_step_alone_there_is_no_gain() -> None:
    (task,) = summarised(records()[1:]).tasks
    assert (task.alone, task.gain, task.after, task.compared) == (None, None, 0.625, 0)


def test_means_compare_the_same_clients() -> None:
    steps = records()
    steps[-1] = step("finish", 3, {"a": {"final.accuracy": 0.75}, "b": {"final.accuracy": float("nan")}})
    steps[1:3] = []
    (task,) = summarised(steps).tasks
    assert (task.alone, task.after, task.compared) == (0.25, 0.75, 1)
    assert task.clients[1].after is None


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        ({"final.own-f1": 0.1, "final.class-f1": 0.2, "final.f1": 0.3, "final.accuracy": 0.4}, "f1"),
        ({"trained.own-recall": 0.1}, "own-recall"),
        ({}, "accuracy"),
    ],
)
def test_main_measure(clients: dict[str, float | list[float]], expected: str) -> None:
    assert main_measure([step("round", 1, {"a": clients}).table()], "birds") == expected


def test_measure_that_is_no_share_is_said_plainly() -> None:
    steps = [step("alone", 0, {"a": {"alone.fit": -2.5}}), step("finish", 3, {"a": {"final.fit": -1.25}})]
    found = summarised([steps[0], step("round", 1, {}), steps[1]])
    assert not found.tasks[0].share
    assert "the mean fit of 1 client is −1.25, up from −2.5 alone (+1.25; 1 of 1 gained)" in wording.verdict(found)


def test_empty_folder_and_json(make_run: Callable[..., RunFolder]) -> None:
    nothing = summary(make_run("nothing", rounds=0, planned=4, alone=False, finish=False))
    assert (nothing.rounds, nothing.planned, nothing.saving, nothing.tasks[0].after) == (0, 4, None, None)
    assert wording.verdict(nothing) == "No round has been committed yet."
    table = json.loads(json.dumps(summary(make_run("full")).table()))
    assert len(table["tasks"][0]["clients"]) == 8
    assert table["algorithm"] == "fedmd"
    assert table["exchange"] == "soft-labels"


def test_verdict_says_the_numbers() -> None:
    assert wording.verdict(summarised(records())).replace("\u00a0", " ") == (
        "After 2 rounds of fedmd, the mean accuracy of 2 clients is 62.5 %, up from 50.0 % alone (+12.5 points; "
        "1 of 2 gained), at 18 B up and 50 B down per client and round (FedAvg would have sent 24 times as much); "
        "540 B in all."
    )


@pytest.mark.parametrize("algorithm", ["local", "central", "fedavg", "feddf"])
def test_no_comparison_where_there_is_nothing_to_compare(make_run: Callable[..., RunFolder], algorithm: str) -> None:
    found = summary(make_run(algorithm, algorithm=algorithm))
    assert found.saving is None
    assert "FedAvg" not in wording.verdict(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.size(0), "0 B"),
        (wording.size(999.4), "999 B"),
        (wording.size(999.6), "1.00 kB"),
        (wording.size(12_340), "12.3 kB"),
        (wording.size(999_600), "1.00 MB"),
        (wording.size(4_560_000_000), "4.56 GB"),
        (wording.magnitude(61_706), "61.7 k"),
        (wording.magnitude(11_170_000), "11.2 M"),
        (wording.score(0.8434, share=True), "84.3 %"),
        (wording.score(-1.5, share=False), "−1.5"),
        (wording.score(None, share=True), "–"),
        (wording.gain(0.231, share=True), "+23.1"),
        (wording.gain(-0.231, share=True), "−23.1"),
        (wording.gain(-0.0001, share=True), "0.0"),
        (wording.duration(0.25), "0.25 s"),
        (wording.duration(59.96), "1 min 0 s"),
        (wording.duration(192), "3 min 12 s"),
        (wording.duration(7500), "2 h 5 min"),
        (wording.count(1, "answer rejected"), "1 answer rejected"),
        (wording.count(2, "answer rejected"), "2 answers rejected"),
        (wording.measure_name("own-macro-f1"), "macro f1 on own data"),
    ],
)
def test_wording(text: str, expected: str) -> None:
    assert text.replace("\u00a0", " ") == expected


@given(st.floats(min_value=0, max_value=1e12))
def test_sizes_have_at_most_three_digits(count: float) -> None:
    digits = wording.size(count).split("\u00a0")[0]
    assert len(digits.replace(".", "")) <= 3


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=8))
def test_mean_leaves_out_what_is_missing(values: list[float | None]) -> None:
    there = [value for value in values if value is not None]
    found = mean(values)
    assert (found is None) == (not there)
    if found is not None:
        assert min(there) - 1e-6 <= found <= max(there) + 1e-6


@pytest.mark.parametrize("value", [None, "0.5", True, float("nan"), float("inf"), [0.5]])
def test_what_is_no_number(value: object) -> None:
    assert number(value) is None
