"""Many sites, and sites that send anything, on a real SuperLink, SuperExec, ServerApp and reverse proxy."""

from __future__ import annotations

from pathlib import Path

import pytest
from crowds import Attacked, attack, many_sites
from deployed import NGINX
from malformed import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NGINX, reason="nginx is not installed")]


def test_many_sites_take_part(tmp_path: Path) -> None:
    played = many_sites(tmp_path / "world", count=6, rounds=2, poll=0.5)

    assert played.run.completed, played.run.details
    assert [(one["kind"], len(one["accepted"]), one["rejected"]) for one in played.records] == [
        ("alone", 6, []),
        ("round", 6, []),
        ("round", 6, []),
        ("finish", 6, []),
    ]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    """Eight attackers, each of which answers eight steps: enough for every kind but those that cost a deadline."""
    return attack(
        tmp_path_factory.mktemp("attack") / "world",
        honest_sites=2,
        attackers=8,
        rounds=6,
        codec="raw",
        seed=1,
        poll=0.5,
        deadline=120.0,
        silent=False,
    )


def test_whatever_attackers_send_the_run_goes_on_with_the_honest_sites_numbers(attacked: Attacked) -> None:
    assert attacked.attacked.run.completed, attacked.attacked.run.details
    assert len(attacked.attacked.records) == 8
    assert attacked.same()


def test_every_malformed_contribution_is_rejected_for_its_reason(attacked: Attacked) -> None:
    found = attacked.reasons()

    assert not attacked.wrong()
    assert sum(one.total() for one in found.values()) == 64
    assert set(found) == {name for name, kind in KINDS.items() if kind.when != "silent"}


def test_flower_refuses_second_replies_and_those_in_anothers_name(attacked: Attacked) -> None:
    assert attacked.diary.refused
    assert not any(taken for answers in attacked.diary.refused.values() for taken in answers)
