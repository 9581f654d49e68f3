"""Every named scenario can be read, says what it is, and names things that exist."""

from __future__ import annotations

import pytest

from fedstill.common.models import model_names
from fedstill.common.scenario import dump, parse, to_toml
from fedstill.common.sources import from_run_config, named_scenarios, read_table
from fedstill.server.launch import build_teacher


@pytest.mark.parametrize("name", named_scenarios())
def test_a_named_scenario(name: str) -> None:
    scenario = parse(read_table(name))

    assert scenario.name == name
    assert len(scenario.description) > 20
    assert parse(dump(scenario)) == scenario
    assert from_run_config({"scenario": name}) == scenario
    assert from_run_config({"toml": to_toml(dump(scenario))}) == scenario
    build_teacher(scenario.teacher)
    for plan in scenario.tasks.values():
        assert {*plan.models, plan.server_model} <= set(model_names(plan.task.modality))


def test_digits_needs_no_download() -> None:
    plan = parse(read_table("digits")).tasks["digits"]

    assert len(plan.task.load(None).pool) == 1438
