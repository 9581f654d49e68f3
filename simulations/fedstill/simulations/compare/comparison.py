"""A comparison in numbers: a row for each method and task of a scenario, means and spreads over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedstill.common.scenario import options
from fedstill.server.folder import RunFolder
from fedstill.server.summary import mean
from fedstill.simulations.compare import ranks as over_sets
from fedstill.simulations.compare.figures import Figures, Key, alone_values, figures, with_gains
from fedstill.simulations.compare.plan import FLOOR, Plan, Unfit
from fedstill.simulations.compare.work import Outcome, run_path


@dataclass(frozen=True, slots=True)
class Stat:
    """A value over seeds.

    Attributes:
        mean: over the seeds that have it.
        spread: sample standard deviation; None for one seed.
        seeds: how many have it.
    """

    mean: float
    spread: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Row:
    """A method on one task of a scenario; see `Figures` for what each value is.

    Attributes:
        runs: finished runs.
        gain: mean over clients of how much better than alone they are.
        least_gain: that of the client who gains least.
    """

    subject: str
    task: str
    measure: str
    share: bool
    method: str
    runs: int
    clients: Stat | None
    worst: Stat | None
    teacher: Stat | None
    worst_class: Stat | None
    gain: Stat | None
    least_gain: Stat | None
    up: Stat | None
    down: Stat | None
    to_target: Stat | None
    seconds: Stat | None
    private: Stat | None
    further: Stat | None
    server: Stat | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a comparison found.

    Attributes:
        plan: what was asked for.
        outcomes: of all runs.
        figures: of the finished ones, a value for each task.
        rows: the table.
        unfit: what has no meaning and was not run, or was refused before its first step.
        unequal: what was not equal although it should be; empty for a fair comparison.
        ranks: of the methods over data sets, if there are enough.
    """

    plan: Plan
    outcomes: tuple[Outcome, ...]
    figures: tuple[Figures, ...]
    rows: tuple[Row, ...]
    unfit: tuple[Unfit, ...]
    unequal: tuple[str, ...]
    ranks: over_sets.Ranks | None

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Runs that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    @property
    def kept(self) -> int:
        """How many runs had been finished before."""
        return sum(outcome.kept for outcome in self.outcomes)

    @property
    def several(self) -> bool:
        """Whether a scenario has several tasks, so that a row has to name its own."""
        return len({(row.subject, row.task) for row in self.rows}) > len({row.subject for row in self.rows})

    def options(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Each method's options, by scenario and method."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for cell in self.plan.cells:
            found.setdefault(cell.subject, {})[cell.method] = options(cell.scenario.algorithm)
        return found

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scenarios": list(self.plan.subjects),
            "methods": list(self.plan.methods),
            "seeds": list(self.plan.seeds),
            "rows": [asdict(row) for row in self.rows],
            "runs": [asdict(one) for one in self.figures],
            "not-applicable": [asdict(one) for one in self.unfit],
            "failed": [
                {"run": one.cell.name, "scenario": one.cell.subject, "method": one.cell.method, "seed": one.cell.seed}
                | {"reason": one.reason}
                for one in self.failed
            ],
            "kept": self.kept,
            "unequal": list(self.unequal),
            "options": self.options(),
            "ranks": asdict(self.ranks) if self.ranks else None,
        }


def comparison(plan: Plan, outcomes: Sequence[Outcome], folder: Path) -> Comparison:
    """The comparison of what was played; runs that are not finished are left out of every mean.

    Args:
        plan: what was asked for.
        outcomes: of all runs.
        folder: of the comparison.
    """
    finished = [outcome.cell for outcome in outcomes if outcome.state == "finished"]
    found: list[Figures] = []
    for cell in finished:
        found += figures(cell, RunFolder(run_path(folder, cell)))
    alone: dict[Key, dict[str, float]] = {}
    for cell in finished:
        if cell.method == FLOOR:
            measures = {one.task: one.measure for one in found if (one.subject, one.seed) == (cell.subject, cell.seed)}
            alone |= alone_values(cell, RunFolder(run_path(folder, cell)), measures)
    found = with_gains(found, alone)
    rows = tuple(_rows(plan, found))
    refused = {
        (one.cell.subject, one.cell.method): Unfit(one.cell.subject, one.cell.method, one.reason)
        for one in outcomes
        if one.state == "unfit"
    }
    return Comparison(
        plan=plan,
        outcomes=tuple(outcomes),
        figures=tuple(found),
        rows=rows,
        unfit=(*plan.unfit, *refused.values()),
        unequal=tuple(_unequal(found, {cell.name: RunFolder(run_path(folder, cell)) for cell in finished})),
        ranks=_ranks(rows),
    )


def stat(values: Iterable[float | None]) -> Stat | None:
    """Mean and spread of the values that are there; None if there is none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Stat(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None, len(there))


def _rows(plan: Plan, found: Sequence[Figures]) -> Iterable[Row]:
    tasks = dict.fromkeys((one.subject, one.task) for one in found)
    for subject, task in sorted(tasks, key=lambda pair: plan.subjects.index(pair[0])):
        for method in plan.methods:
            own = [one for one in found if (one.subject, one.task, one.method) == (subject, task, method)]
            if own:
                yield _row(own)


def _row(own: Sequence[Figures]) -> Row:
    def over(value: Callable[[Figures], float | None]) -> Stat | None:
        return stat(value(one) for one in own)

    return Row(
        subject=own[0].subject,
        task=own[0].task,
        measure=own[0].measure,
        share=all(one.share for one in own),
        method=own[0].method,
        runs=len(own),
        clients=over(lambda one: one.clients),
        worst=over(lambda one: one.worst),
        teacher=over(lambda one: one.teacher),
        worst_class=over(lambda one: one.worst_class),
        gain=over(lambda one: mean(one.gains.values())),
        least_gain=over(lambda one: min(one.gains.values(), default=None)),
        up=over(lambda one: one.up),
        down=over(lambda one: one.down),
        to_target=over(lambda one: one.to_target),
        seconds=over(lambda one: one.seconds),
        private=over(lambda one: one.private),
        further=over(lambda one: one.further),
        server=over(lambda one: one.server),
    )


def _unequal(found: Sequence[Figures], folders: dict[str, RunFolder]) -> Iterable[str]:
    """What runs of one scenario and seed should have in common, and have not."""
    groups: dict[tuple[str, int], list[Figures]] = {}
    for one in found:
        if one.values:  # without clients there is nothing to be equal
            groups.setdefault((one.subject, one.seed), []).append(one)
    for (subject, seed), own in groups.items():
        steps = {one.method: one.private for one in own}
        if len(set(steps.values())) > 1:
            said = ", ".join(f"{method} {count}" for method, count in steps.items())
            yield f"{subject}, seed {seed}: private steps differ ({said})"
        rosters = [folders[f"{subject}/{method}/seed-{seed}"].config().get("roster") for method in steps]
        if any(roster != rosters[0] for roster in rosters):
            yield f"{subject}, seed {seed}: clients, models or examples differ"


def _ranks(rows: Sequence[Row]) -> over_sets.Ranks | None:
    sets = list(dict.fromkeys((row.subject, row.task) for row in rows))
    scores = {(row.method, row.subject, row.task): row.clients.mean for row in rows if row.clients is not None}
    methods = [
        name for name in dict.fromkeys(row.method for row in rows) if all((name, *one) in scores for one in sets)
    ]
    if len({subject for subject, _ in sets}) < over_sets.FEWEST or len(methods) < 2:
        return None
    return over_sets.ranks({name: [scores[name, subject, task] for subject, task in sets] for name in methods})
