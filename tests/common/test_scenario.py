from __future__ import annotations

import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.algorithms.dsfl import DSFL
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.algorithms.fedstill import Fedstill
from fedstill.common.codecs.argmax import Argmax
from fedstill.common.codecs.fp16 import FP16
from fedstill.common.codecs.sqrtp import SqrtP
from fedstill.common.errors import ConfigError, UnsupportedError
from fedstill.common.registry import ALGORITHMS, CODECS
from fedstill.common.scenario import TaskPlan, dump, parse, single_task, to_toml
from fedstill.common.sources import from_run_config, named_scenarios, override, read_table, value_of
from fedstill.common.tasks.detection import DetectionTask
from fedstill.common.tasks.image import ImageTask

SMALL: dict[str, Any] = {
    "algorithm": {"name": "fedmd"},
    "tasks": {"digits": {"kind": "image", "source": "digits", "models": ["mlp-small"]}},
}


def changed(**changes: Any) -> dict[str, Any]:
    return override(SMALL, {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()})


@pytest.mark.parametrize("name", named_scenarios())
def test_a_named_scenario_is_what_is_written_of_it(name: str) -> None:
    scenario = parse(read_table(name))
    assert scenario.name == name
    assert scenario.description
    written = to_toml(dump(scenario))
    assert parse(tomllib.loads(written)) == scenario
    assert to_toml(dump(parse(tomllib.loads(written)))) == written


FRACTION = st.floats(0.01, 1)
SCENARIOS = st.fixed_dictionaries(
    {
        "tasks": st.dictionaries(
            st.from_regex(r"\A[a-z][a-z0-9_-]{0,8}\Z"),
            st.fixed_dictionaries(
                {"kind": st.just("image"), "models": st.lists(st.sampled_from(["mlp-small", "cnn-small"]), min_size=1)},
                optional={
                    "source": st.just("digits"),
                    "teacher": st.just("cnn-medium"),
                    "proxy": st.builds(lambda n: {"samples": n, "per-round": n // 2}, st.integers(1, 900)),
                    "partition": st.fixed_dictionaries(
                        {"kind": st.sampled_from(["iid", "dirichlet", "pathological"])},
                        optional={"alpha": st.floats(0.01, 100), "classes": st.integers(1, 9)},
                    ),
                    "private": st.integers(0, 10**6),
                    "holdout": st.floats(0, 0.99),
                    "label-space": st.sampled_from(["shared", "own"]),
                },
            ),
            min_size=1,
            max_size=3,
        ),
        "algorithm": st.one_of(
            st.sampled_from(["fedavg", "local", "central", "feddf"]).map(lambda name: {"name": name}),
            st.fixed_dictionaries(
                {"name": st.just("fedmd")},
                optional={
                    "temperature": st.floats(0.01, 100),
                    "digest-epochs": st.integers(1, 9),
                    "scores": st.sampled_from(["probabilities", "logits"]),
                },
            ),
        ),
    },
    optional={
        "name": st.text(st.characters(codec="utf-8"), max_size=10),
        "seed": st.integers(0, 2**63 - 1),
        "alone": st.booleans(),
        "codec": st.sampled_from([name for name in CODECS.names() if name != "argmax"]),  # holds distributions only
        "clients": st.fixed_dictionaries({}, optional={"count": st.integers(1, 99), "cohort": FRACTION}),
        "rounds": st.fixed_dictionaries({}, optional={"count": st.integers(1, 99), "deadline": st.floats(1, 1e6)}),
        "training": st.fixed_dictionaries(
            {}, optional={"epochs": st.integers(1, 9), "precision": st.sampled_from(["fp32", "bf16"])}
        ),
        "teacher": st.fixed_dictionaries({"kind": st.text("abc", min_size=1)}, optional={"epochs": st.integers(1, 9)}),
    },
)


@settings(deadline=None, max_examples=60)
@given(SCENARIOS)
def test_any_scenario_is_what_is_written_of_it(table: dict[str, Any]) -> None:
    scenario = parse(table)
    assert parse(dump(scenario)) == scenario
    assert parse(tomllib.loads(to_toml(dump(scenario)))) == scenario


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sed", r"unknown key 'sed': .*did you mean 'seed'"),
        ("clients.cout", r"unknown key 'clients\.cout': .*did you mean 'count'"),
        ("training.batch_size", r"unknown key 'training\.batch_size': .*did you mean 'batch-size'"),
        ("algorithm.temprature", r"unknown key 'algorithm\.temprature': .*did you mean 'temperature'"),
        ("tasks.digits.modls", r"unknown key 'tasks\.digits\.modls': .*did you mean 'models'"),
        ("tasks.digits.proxy.sample", r"unknown key 'tasks\.digits\.proxy\.sample': .*did you mean 'samples'"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(override(SMALL, {key: 1}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "one", "seed = 'one'"),
        ("seed", 1.5, r"seed = 1\.5"),
        ("seed", -1, "seed=-1: expected >= 0"),
        ("alone", "perhaps", "alone = 'perhaps'"),
        ("codec", "zip", "codec 'zip': expected a known codec"),
        ("clients", 8, r"clients = 8: expected a table \[clients\]"),
        ("clients.count", "many", r"clients\.count = 'many'"),
        ("clients.count", 0, "clients_count=0: expected >= 1"),
        ("clients.cohort", 0, "clients_cohort=0"),
        ("clients.quorum", 1.01, "expected 0 < value <= 1"),
        ("rounds.count", 0, "rounds_count=0"),
        ("rounds.deadline", math.inf, "rounds_deadline=inf"),
        ("rounds.deadline", math.nan, "rounds_deadline=nan"),
        ("training.epochs", 2.5, r"training\.epochs = 2\.5"),
        ("training.precision", "fp8", r"training\.precision = 'fp8'"),
        ("algorithm", "fedmd", r"expected a table \[algorithm\]"),
        ("algorithm.name", "fedmb", "did you mean 'fedmd'"),
        ("algorithm.temperature", "hot", r"algorithm\.temperature = 'hot'"),
        ("algorithm.temperature", 0, "algorithm_temperature=0"),
        ("tasks", {}, "expected at least one task"),
        ("tasks.digits", {"kind": "image"}, "without 'models'"),
        ("tasks.digits.models", [], "expected at least one architecture"),
        ("tasks.digits.models", 7, r"tasks\.digits\.models = 7"),
        ("tasks.digits.kind", "imag", "did you mean 'image'"),
        ("tasks.digits.holdout", 1.0, "holdout=1.0: expected 0 <= value < 1"),
        ("tasks.digits.label-space", "mine", r"tasks\.digits\.label-space = 'mine'"),
        ("tasks.digits.proxy.per-round", 501, r"expected at most proxy\.samples=500"),
        ("tasks.digits.partition.alpha", 0, "partition_alpha=0"),
        ("tasks.digits.clients", [0, 8], r"holds 8: expected 0 to 7"),
    ],
)
def test_wrong_types_and_ranges(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(override(SMALL, {key: value}))


@pytest.mark.parametrize("missing", ["algorithm", "tasks"])
def test_what_a_scenario_cannot_do_without(missing: str) -> None:
    with pytest.raises(ConfigError):
        parse({key: value for key, value in SMALL.items() if key != missing})


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "-a", "é", "a b"])
def test_a_task_name_is_a_part_of_keys(name: str) -> None:
    with pytest.raises(ConfigError, match="task name"):
        parse(SMALL | {"tasks": {name: SMALL["tasks"]["digits"]}})


def test_override_changes_a_copy() -> None:
    table = override(SMALL, {"seed": 7, "training.epochs": 3})
    assert (table["seed"], table["training"]) == (7, {"epochs": 3})
    assert "seed" not in SMALL
    assert table["tasks"]["digits"] is not SMALL["tasks"]["digits"]


def test_another_algorithm_takes_none_of_the_old_options() -> None:
    table = override(SMALL, {"algorithm.temperature": 2.0})
    # Whatever the order of the changes
    other = override(table, {"algorithm.distil-epochs": 4, "algorithm.name": "dsfl"})
    assert other["algorithm"] == {"name": "dsfl", "distil-epochs": 4}
    assert parse(other).algorithm == DSFL(distil_epochs=4)
    same = override(table, {"algorithm.name": "fedmd", "algorithm.digest-epochs": 3})
    assert parse(same).algorithm == FedMD(temperature=2.0, digest_epochs=3)


def test_override_through_something_that_is_no_table() -> None:
    with pytest.raises(ConfigError, match="expected a table at 'seed'"):
        override(SMALL | {"seed": 1}, {"seed.deep": 2})


def test_run_config_is_flat_and_empty_means_as_it_is() -> None:
    config = {
        "scenario": "digits",
        "seed": "",
        "data-dir": "/somewhere",
        "algorithm.name": "fedmd",
        "algorithm.temperature": 2.0,
        "clients.count": 4,
        "set": "training.epochs=7 training.precision=bf16 tasks.digits.models=mlp-small,cnn-small name=mine",
    }
    scenario = from_run_config(config)
    assert scenario.algorithm == FedMD(temperature=2.0)
    assert (scenario.clients.count, scenario.seed, scenario.name) == (4, 1, "mine")
    assert (scenario.training.epochs, scenario.training.precision) == (7, "bf16")
    assert scenario.tasks["digits"].models == ("mlp-small", "cnn-small")
    assert from_run_config({"toml": to_toml(dump(scenario)), "scenario": "other"}) == scenario
    assert from_run_config({}) == from_run_config({"scenario": "digits"})


def test_run_config_and_command_line_give_the_same_scenario() -> None:
    flat = from_run_config({"scenario": "digits", "algorithm.name": "dsfl", "clients.count": 3})
    assert parse(override(read_table("digits"), {"algorithm.name": "dsfl", "clients.count": 3})) == flat


@pytest.mark.parametrize("text", ["seed", "seed=", "=", "nothing.such=1"])
def test_a_bad_word_in_set_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_run_config({"scenario": "digits", "set": text})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("2.0", 2.0),
        ("true", True),
        ("True", "True"),
        ("fedmd", "fedmd"),
        ('"2"', "2"),
        ("[1, 2]", [1, 2]),
        ("", ""),
        ("mlp-small,cnn-small", "mlp-small,cnn-small"),
        ("1e-3", 0.001),
    ],
)
def test_value_of_a_word(text: str, value: Any) -> None:
    found = value_of(text)
    assert (found, type(found)) == (value, type(value))


def test_scenario_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(SMALL))
    assert read_table(str(path)) == SMALL
    for content, message in ((b"a = ", "is no TOML"), (b"\xff", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_table(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match=r"scenario 'digit': .*did you mean 'digits'"):
        read_table("digit")


def test_models_are_dealt_in_turn() -> None:
    plan = TaskPlan(task=ImageTask(), models=("a", "b", "c"))
    assert [plan.model(client) for client in range(5)] == ["a", "b", "c", "a", "b"]
    assert plan.server_model == "c"
    assert TaskPlan(task=ImageTask(), models=("a",), teacher="t").server_model == "t"


def test_a_scenario_in_python() -> None:
    scenario = single_task(ImageTask(), "mlp-small", clients=3, seed=4, codec=FP16())
    assert (scenario.clients.count, scenario.seed, scenario.codec, scenario.algorithm) == (3, 4, FP16(), Fedstill())
    assert scenario.tasks["image"].models == ("mlp-small",)
    plan = TaskPlan(task=ImageTask(), models=("a", "b"), private=9)
    assert single_task(plan, clients=3).tasks["image"] == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": {"name": "fedavg"}},
            r"codec 'argmax' with algorithm 'fedavg': expected a method that exchanges",
        ),
        ({"algorithm": {"name": "relational"}}, "codec 'argmax' with algorithm 'relational'"),
        ({"algorithm": {"name": "fedmd", "scores": "logits"}}, "codec 'argmax' with algorithm 'fedmd'"),
    ],
)
def test_a_codec_that_cannot_hold_what_is_exchanged(changes: dict[str, Any], message: str) -> None:
    assert parse(override(SMALL, {"codec": "argmax", "algorithm": {"name": "fedmd"}})).codec == Argmax()
    assert parse(override(SMALL, {"codec": "argmax", "algorithm": {"name": "local"}})).codec == Argmax()
    with pytest.raises(ConfigError, match=message):
        parse(override(SMALL, {"codec": "argmax", **changes}))


def test_options_of_a_codec() -> None:
    plan = {"codec": {"name": "sqrtp", "levels": 2}}
    scenario = parse(override(SMALL, plan))
    assert scenario.codec == SqrtP(levels=2)
    assert dump(scenario)["codec"] == plan["codec"]
    assert dump(parse(override(SMALL, {"codec": {"name": "sqrtp", "levels": 5}})))["codec"] == "sqrtp"
    with pytest.raises(ConfigError, match=r"unknown key 'codec.level': .*levels"):
        parse(override(SMALL, {"codec": {"name": "sqrtp", "level": 2}}))
    with pytest.raises(ConfigError, match="codec_levels=0: expected 1 <= value <= 31"):
        parse(override(SMALL, {"codec": {"name": "sqrtp", "levels": 0}}))
    with pytest.raises(ConfigError, match=r"codec = 5: expected a table"):
        parse(override(SMALL, {"codec": 5}))


def test_a_codec_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(
        ConfigError, match=r"codec='sqrtp' without the package constriction: expected the extra 'codec'"
    ):
        parse(override(SMALL, {"codec": "sqrtp"}))


def test_a_codec_that_cannot_hold_a_tasks_soft_labels() -> None:
    task = DetectionTask(source="boxes")
    with pytest.raises(ConfigError, match="codec 'argmax' with task 'detection' of output kind 'dense'"):
        single_task(task, "centernet-small", clients=3, seed=4, codec=Argmax())


def test_an_output_kind_that_the_method_cannot_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageTask, "output", "regression")
    with pytest.raises((ConfigError, UnsupportedError), match="algorithm 'dsfl' with task 'digits' of output kind"):
        parse(override(SMALL, {"algorithm.name": "dsfl"}))
    assert "regression" in ALGORITHMS.get("fedmd").outputs
