"""What the parts of a scenario have to say to each other before a run: checks that need more than one table of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedstill.common.algorithm import asked
from fedstill.common.errors import ConfigError
from fedstill.common.outputs import output_kind

if TYPE_CHECKING:
    from fedstill.common.scenario import ProxyPlan, Scenario, TaskPlan


def check_codec(scenario: Scenario) -> None:
    """Refuse a codec that cannot be used here, or cannot hold what is exchanged."""
    codec, method = scenario.codec, scenario.algorithm
    if not getattr(codec, "only_distributions", False) or method.exchange in ("nothing", "data"):
        return
    if method.exchange != "soft-labels" or asked(method)[0] != "probabilities":
        raise ConfigError(
            f"codec '{codec.name}' with algorithm '{method.name}'",
            "expected a method that exchanges probabilities",
            "choose another codec",
        )
    for name, plan in scenario.tasks.items():
        if not output_kind(plan.task.output).has_classes:
            raise ConfigError(
                f"codec '{codec.name}' with task '{name}' of output kind '{plan.task.output}'",
                "expected distributions over classes",
                "choose another codec",
            )


def check_adaptive(scenario: Scenario) -> None:
    """Refuse adaptive clients that have nothing to compare with."""
    if not scenario.training.adaptive:
        return
    if not scenario.alone:
        raise ConfigError(
            "training.adaptive with alone = false",
            "expected students trained alone to compare with",
            "set alone = true",
        )
    for name, plan in scenario.tasks.items():
        if not plan.holdout:
            raise ConfigError(
                f"training.adaptive with tasks.{name}.holdout=0", "expected held-out examples", "such as holdout = 0.2"
            )


def check_shared(tasks: Mapping[str, TaskPlan]) -> None:
    """Refuse tasks that share proxy samples and disagree on how many."""
    first: dict[str, tuple[str, ProxyPlan]] = {}
    for name, plan in tasks.items():
        if not plan.proxy.shared:
            continue
        other, told = first.setdefault(plan.proxy.shared, (name, plan.proxy))
        if told != plan.proxy:
            raise ConfigError(
                f"tasks.{name}.proxy with {plan.proxy.samples} samples, {plan.proxy.per_round} a round",
                f"expected {told.samples} and {told.per_round}, as task '{other}', which shares them",
                "set the same numbers",
            )
