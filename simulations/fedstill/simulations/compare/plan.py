"""Which runs a comparison is made of, and which pairs of method and scenario do not fit.

Of one scenario and seed all runs are equal but for the method: split, proxy set, architectures, initialisation and
order of batches are drawn from the seed and from names that do not hold the method's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common.algorithm import Algorithm, check_plan, one_round
from fedstill.common.errors import ConfigError
from fedstill.common.query import check_choice
from fedstill.common.registry import ALGORITHMS
from fedstill.common.scenario import Scenario, parse
from fedstill.common.sources import override, read_table

FLOOR = "local"
"""The method whose clients are what a gain is counted from: every client alone."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison.

    Attributes:
        subject: the scenario's name here.
        method: name of the algorithm.
        seed: of the run.
        scenario: what is run.
    """

    subject: str
    method: str
    seed: int
    scenario: Scenario

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.subject}/{self.method}/seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Unfit:
    """A method that has no meaning for a scenario, and why."""

    subject: str
    method: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole comparison.

    Attributes:
        subjects: names of the scenarios.
        methods: names of the algorithms, the floor among them if clients are measured alone.
        seeds: one run each.
        cells: all runs, in the order in which they begin.
        unfit: what is not run.
    """

    subjects: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    unfit: tuple[Unfit, ...]


def plan(names: Sequence[str], methods: Sequence[str], seeds: Sequence[int], changes: Mapping[str, Any] = {}) -> Plan:
    """Every run of a comparison.

    The floor is added if it is not asked for, unless a scenario has `alone = false`.

    Args:
        names: scenarios, by name or as TOML files.
        methods: names of algorithms.
        seeds: of the runs.
        changes: keys of every scenario, or METHOD.KEY for an option of one method.

    Raises:
        ConfigError: for anything that is not known, named twice or not to be changed here.
    """
    methods, seeds = _once(methods, "--methods"), _once(seeds, "--seeds")
    kinds = {method: ALGORITHMS.get(method) for method in (*methods, FLOOR)}
    common, own = _sorted(changes, kinds)
    tables = {_subject(name): override(read_table(name), common) for name in _once(names, "scenarios")}
    if len(tables) < len(names):
        raise ConfigError(f"scenarios {', '.join(names)}", "expected another name for each", "rename a file")
    alone = {subject: parse(table).alone for subject, table in tables.items()}
    everything = methods if FLOOR in methods or not any(alone.values()) else (*methods, FLOOR)
    cells, unfit = [], []
    for subject, table in tables.items():
        reasons = {method: misfit(parse(table), kinds[method]) for method in everything}
        unfit += [Unfit(subject, method, reason) for method, reason in reasons.items() if reason]
        fitting = [method for method, reason in reasons.items() if not reason]
        if FLOOR not in methods and not alone[subject]:
            fitting = [method for method in fitting if method != FLOOR]
        cells += [
            Cell(subject, method, seed, _scenario(table, method, seed, own.get(method, {})))
            for seed in seeds
            for method in fitting
        ]
    return Plan(tuple(tables), everything, seeds, tuple(cells), tuple(unfit))


def misfit(scenario: Scenario, method: type[Algorithm]) -> str:
    """Why a method has no meaning for a scenario; "" if it has."""
    try:
        check_plan(method, teacher=scenario.teacher.name, rounds=1)
        for name, own in scenario.tasks.items():
            check_choice(name, own.proxy.choose, output=own.task.output, exchange=method.exchange)
    except ConfigError as error:
        return str(error)
    for name, own in scenario.tasks.items():
        output = own.task.output
        if output not in method.outputs:
            return f"task '{name}' has output kind '{output}', the method is for {', '.join(sorted(method.outputs))}"
        clients = own.clients or range(scenario.clients.count)
        models = sorted({own.model(client) for client in clients})
        if len(models) > 1 and method.homogeneous:
            return f"clients have several models ({', '.join(models)}), the method needs one"
        if own.label_space == "own" and method.exchange == "parameters":
            return f"clients know other classes of task '{name}', the method needs one label space"
    return ""


def _scenario(table: Mapping[str, Any], method: str, seed: int, own: Mapping[str, Any]) -> Scenario:
    options = {f"algorithm.{key}": value for key, value in own.items()}
    if one_round(ALGORITHMS.get(method)):
        # As many steps on private data as the other methods have in all their rounds.
        whole = parse(table)
        options |= {"rounds.count": 1, "training.epochs": whole.training.epochs * whole.rounds.count}
    changed = override(table, {"algorithm.name": method, "seed": seed, **options})
    one = parse(changed)
    # The floor's run measures everybody alone for all methods. With full cohorts its end is just that already.
    needed = one.training.adaptive or (method == FLOOR and one.alone and one.clients.cohort < 1)
    return parse(override(changed, {"alone": needed}))


def _subject(name: str) -> str:
    return Path(name).stem if name.endswith(".toml") else name


def _once(values: Sequence[Any], what: str) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        said = ", ".join(map(str, values)) or "nothing"
        raise ConfigError(f"{what}: {said}", "expected at least one, and none twice")
    return tuple(values)


def _sorted(changes: Mapping[str, Any], methods: Iterable[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Changes of every scenario, and those of one method's options."""
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if key == "seed" or first == "algorithm":
            cure = (
                "use --seeds" if key == "seed" else f"use --methods, and METHOD.{rest or 'KEY'}=VALUE for one of them"
            )
            raise ConfigError(f"--set {key}", "is what a comparison varies itself", cure)
        if rest and first in methods:
            own.setdefault(first, {})[rest] = value
        else:
            common[key] = value
    return common, own
