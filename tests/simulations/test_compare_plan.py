"""What a comparison is made of, what it makes equal, and how it counts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import friedmanchisquare, studentized_range

from fedstill.common.errors import ConfigError
from fedstill.common.learning import Training
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.common.sides import Client
from fedstill.server.folder import differences
from fedstill.simulations.cli import Numbers, _whole, _words
from fedstill.simulations.compare import plots
from fedstill.simulations.compare.comparison import Stat, stat
from fedstill.simulations.compare.figures import bytes_to_target, private_steps
from fedstill.simulations.compare.plan import plan
from fedstill.simulations.compare.ranks import Q_005, ranks
from fedstill.simulations.compare.steps import StepCounter, counted

Small = Callable[..., Scenario]
Play = Callable[..., Any]


@pytest.fixture
def scenario(tmp_path: Path, small: Small) -> str:
    return _file(tmp_path / "small.toml", small())


def _file(path: Path, one: Scenario) -> str:
    path.write_text(to_toml(dump(one)))
    return str(path)


# The plan ------------------------------------------------------------------------------------------------------------


def test_runs_of_a_seed_differ_in_the_method_alone(scenario: str) -> None:
    found = plan([scenario], ["fedmd", "dsfl", "local", "central"], [1, 2], {"rounds.count": 4})

    assert [(cell.method, cell.seed) for cell in found.cells] == [
        (method, seed) for seed in (1, 2) for method in ("fedmd", "dsfl", "local", "central")
    ]
    for seed in (1, 2):
        tables = [dump(cell.scenario) for cell in found.cells if cell.seed == seed]
        keys = {line.split(":")[0] for table in tables for line in differences(tables[0], table)}
        assert {key.split(".")[0] for key in keys} == {"algorithm"}
        assert all(table["rounds"]["count"] == 4 and table["seed"] == seed for table in tables)


def test_the_floor_is_added_unless_nobody_is_to_be_measured_alone(scenario: str) -> None:
    assert plan([scenario], ["fedmd"], [1]).methods == ("fedmd", "local")
    assert plan([scenario], ["fedmd"], [1], {"alone": False}).methods == ("fedmd",)


def test_only_the_floor_measures_alone_and_only_where_its_end_is_something_else(scenario: str) -> None:
    full = plan([scenario], ["fedmd"], [1])
    part = plan([scenario], ["fedmd"], [1], {"clients.cohort": 0.5})
    adaptive = plan([scenario], ["fedmd"], [1], {"training.adaptive": True})

    assert [cell.scenario.alone for cell in full.cells] == [False, False]
    assert [cell.scenario.alone for cell in part.cells] == [False, True]
    assert [cell.scenario.alone for cell in adaptive.cells] == [True, True]


def test_a_method_of_one_round_gets_the_steps_of_all_rounds(scenario: str) -> None:
    found = plan([scenario], ["fedmd", "one-shot"], [1], {"rounds.count": 5, "training.epochs": 3})

    told = {cell.method: (cell.scenario.rounds.count, cell.scenario.training.epochs) for cell in found.cells}
    assert told == {"fedmd": (5, 3), "one-shot": (1, 15), "local": (5, 3)}
    assert found.unfit == ()


def test_options_of_one_method(scenario: str) -> None:
    found = plan([scenario], ["fedmd", "dsfl"], [1], {"dsfl.temperature": 0.2, "fedmd.digest-epochs": 5})

    methods: dict[str, Any] = {cell.method: cell.scenario.algorithm for cell in found.cells}
    assert (methods["dsfl"].temperature, methods["fedmd"].digest_epochs, methods["fedmd"].temperature) == (0.2, 5, 1.0)


@pytest.mark.parametrize(
    ("methods", "seeds", "changes", "message"),
    [
        (["fedmdd"], [1], {}, "algorithm 'fedmdd': expected a known algorithm"),
        (["fedmd", "fedmd"], [1], {}, "--methods: fedmd, fedmd: expected at least one, and none twice"),
        (["fedmd"], [], {}, "--seeds: nothing"),
        (["fedmd"], [1], {"seed": 2}, "--set seed: is what a comparison varies itself (use --seeds)"),
        (["fedmd"], [1], {"algorithm.temperature": 2}, "METHOD.temperature=VALUE"),
        (["fedmd"], [1], {"fedmd.temprature": 2}, "unknown key 'algorithm.temprature'"),
        (["fedmd"], [1], {"dsfl.temperature": 2}, "unknown key 'dsfl'"),
    ],
)
def test_what_cannot_be_compared(
    scenario: str, methods: list[str], seeds: list[int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        plan([scenario], methods, seeds, changes)
    assert message in str(raised.value)


def test_two_scenarios_of_one_name_are_refused(scenario: str, tmp_path: Path, small: Small) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="another name for each"):
        plan([scenario, _file(tmp_path / "other" / "small.toml", small())], ["fedmd"], [1])


@pytest.mark.parametrize(
    ("changes", "method", "reason"),
    [
        ({}, "fedavg", "clients have several models (linear-softmax, mlp-small), the method needs one"),
        (
            {"tasks.wine.models": ["mlp-small"], "tasks.wine.label-space": "own"},
            "fedavg",
            "clients know other classes of task 'wine', the method needs one label space",
        ),
        (
            {"teacher.kind": "model"},
            "mhat",
            "teacher 'model' with algorithm 'mhat': expected 'consensus', because the method trains the server's model "
            'itself (set teacher.kind = "consensus", or choose a method without a teacher of its own, such as fedmd)',
        ),
    ],
)
def test_not_applicable(tmp_path: Path, small: Small, changes: dict[str, Any], method: str, reason: str) -> None:
    found = plan([_file(tmp_path / "one.toml", small(changes))], [method, "local"], [1, 2])

    assert [(one.method, one.reason) for one in found.unfit] == [(method, reason)]
    assert {cell.method for cell in found.cells} == {"local"}


def test_a_method_for_other_outputs_is_not_applicable() -> None:
    found = plan(["blood-cells"], ["dsfl"], [1])

    assert [(one.method, one.reason.split(",")[0]) for one in found.unfit] == [
        ("dsfl", "task 'cells' has output kind 'dense'")
    ]
    assert [cell.method for cell in found.cells] == ["local"]


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["digits", "--seeds", "1", "2", "3"], "1,2,3"),
        (["--seeds", "1,2", "3", "digits"], "1,2,3"),
        (["digits", "--seeds", "7", "--workers", "2"], "7"),
    ],
)
def test_seeds_on_the_command_line(words: list[str], seeds: str) -> None:
    import typer

    from fedstill.simulations.cli import app

    command = typer.main.get_command(app).commands["compare"]  # type: ignore[attr-defined]
    assert isinstance(command, Numbers)
    values = command.make_context("compare", words).params
    assert (values["seeds"], values["scenarios"]) == (seeds, ("digits",))
    assert [_whole(word) for word in _words(seeds)] == [int(word) for word in seeds.split(",")]


def test_a_seed_is_a_whole_number() -> None:
    with pytest.raises(ConfigError, match=r"--seeds 1\.5: expected whole numbers"):
        _whole("1.5")


# What is equal -------------------------------------------------------------------------------------------------------


def test_two_methods_start_from_identical_students_and_data(play_small: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each client holds when it first trains: weights, private data, proxy set, seed of its batches."""
    seen: dict[str, tuple[str, ...]] = {}
    train, train_among = Client.train, Client.train_among

    def note(self: Client) -> None:
        weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in self.model.state_dict().values()))
        inputs = hashlib.sha256(self.private.inputs.numpy().tobytes()).hexdigest()
        told = (weights.hexdigest(), inputs, self.proxy.digest, str(self.seed), str(self.samples.tolist()))
        seen.setdefault(self.name, told)

    def noted_train(self: Client, *args: Any) -> float:
        note(self)
        return train(self, *args)

    def noted_among(self: Client, *args: Any) -> float:
        note(self)
        return train_among(self, *args)

    monkeypatch.setattr(Client, "train", noted_train)
    monkeypatch.setattr(Client, "train_among", noted_among)
    found = {}
    for method in ("fedmd", "dsfl", "fedstill", "local"):
        seen.clear()
        play_small({"algorithm.name": method, "alone": False, "rounds.count": 1}, name=method)
        found[method] = dict(seen)

    assert len(found["local"]) == 4
    assert len({told[0] for told in found["local"].values()}) == 4
    assert all(told == found["local"] for told in found.values())


def test_private_steps_by_hand() -> None:
    config = {"roster": {"a": {"t": {"examples": 33}}, "b": {"t": {"examples": 16}, "u": {"examples": 1}}}}
    records: list[dict[str, Any]] = [
        {"kind": "alone", "step": 0, "cohort": ["a", "b"], "abandoned": []},
        {"kind": "round", "step": 1, "cohort": ["a", "b"], "abandoned": []},
        {"kind": "round", "step": 2, "cohort": ["a"], "abandoned": [{"cohort": ["b"]}]},
        {"kind": "finish", "step": 3, "cohort": ["a", "b"], "abandoned": []},
    ]

    # A pass takes a 3 batches, b 1 + 1; 2 epochs and in the first round 4 more.
    assert private_steps(config, records, Training(epochs=2, warmup=4, batch_size=16)) == 6 * 5 + 2 * 5


def test_steps_are_counted_where_torch_takes_them(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    weight.grad = torch.ones(1)
    counter = StepCounter(tmp_path / "steps.jsonl")

    class App:
        def __call__(self, *_: object) -> str:
            optimizer.step()
            optimizer.step()
            return "reply"

    app: Any = App()
    nothing: Any = None
    optimizer.step()
    reply: Any = counter.around(app)(nothing, nothing)
    assert reply == "reply"
    counter.on_step({"step": 1})
    optimizer.step()
    counter.on_step({"step": 2})
    counter.close()
    optimizer.step()

    assert counted(tmp_path / "steps.jsonl", first=1, last=2) == {"clients": 2, "server": 2}
    assert counted(tmp_path / "steps.jsonl", first=2, last=2) == {"clients": 0, "server": 1}
    assert counted(tmp_path / "steps.jsonl", first=1, last=3) is None
    assert counted(tmp_path / "nothing.jsonl", first=1, last=1) is None


# Numbers -------------------------------------------------------------------------------------------------------------


def test_mean_and_spread() -> None:
    assert stat([1.0, None, 3.0]) == Stat(2.0, math.sqrt(2), 2)
    assert stat([4.0]) == Stat(4.0, None, 1)
    assert stat([None]) is None


def test_bytes_until_ninety_per_cent_of_the_last_value() -> None:
    assert bytes_to_target([0.5, 0.71, 0.72, 0.9, 0.8], [10, 20, 30, 40, 50]) == 30
    assert bytes_to_target([0.9, 0.8], [10, 20]) == 10
    assert bytes_to_target([-2.0, -1.0], [10, 20]) is None
    assert bytes_to_target([], []) is None


SCORES = {"a": [0.9, 0.8, 0.7, 0.95], "b": [0.8, 0.8, 0.6, 0.9], "c": [0.7, 0.6, 0.65, 0.5]}


def test_ranks_by_hand() -> None:
    found = ranks(SCORES)

    # a: 1, 1.5, 1, 1; b: 2, 1.5, 3, 2; c: 3, 3, 2, 3.
    assert found.mean == {"a": 1.125, "b": 2.125, "c": 2.75}
    # 12 · 4 / (3 · 4) · (1.125² + 2.125² + 2.75² − 3 · 16 / 4)
    assert found.statistic == pytest.approx(4 * (1.265625 + 4.515625 + 7.5625 - 12))
    assert found.critical == pytest.approx(2.344 * math.sqrt(12 / 24), abs=1e-3)
    assert found.groups == (("a", "b", "c"),)


def test_friedman_as_scipy_has_it() -> None:
    rng = np.random.default_rng(3)
    scores = {name: list(rng.normal(place, 1, 7)) for place, name in enumerate("abcde")}

    found = ranks(scores)

    theirs = friedmanchisquare(*scores.values())
    assert (found.statistic, found.p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_tabulated_q() -> None:
    for place, q in enumerate(Q_005):
        assert q == pytest.approx(float(studentized_range.ppf(0.95, place + 2, 1e6)) / math.sqrt(2), abs=6e-4)


def test_groups_of_methods_that_do_not_differ() -> None:
    scores = {name: [float(-place)] * 12 for place, name in enumerate("abcd")}

    found = ranks(scores)

    assert found.critical is not None
    assert 1 < found.critical < 2
    assert found.groups == (("a", "b"), ("b", "c"), ("c", "d"))
    label = 'aria-label="Mean ranks over 12 tasks: a 1.00, b 2.00, c 3.00, d 4.00."'
    assert label in plots.critical_plot(found, name="ranks")
