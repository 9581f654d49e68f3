"""A run's metrics, asked for over HTTP as Prometheus does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from fedstill.common.errors import ConfigError
from fedstill.server.trackers.prometheus import Prometheus

STEP = {
    "kind": "round",
    "step": 1,
    "accepted": ["a", "b"],
    "rejected": [{"client": "c", "reason": "no-answer", "detail": ""}],
    "abandoned": [{"rejected": [{"client": "a", "reason": "no-answer", "detail": ""}]}],
    "bytes": {"up": 300, "down": 40},
    "seconds": 1.5,
}


@pytest.fixture
def metrics() -> Iterator[Prometheus]:
    one = Prometheus("127.0.0.1:0", "heart-1", last=4, committed=[{**STEP, "step": 0, "abandoned": []}])
    yield one
    one.close()


def ask(metrics: Prometheus, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}{path}", timeout=10) as reply:
        found: bytes = reply.read()
    return found


def values(metrics: Prometheus) -> dict[str, float]:
    lines = [line for line in ask(metrics, "/metrics").decode().splitlines() if line.startswith("fedstill")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_steps_are_counted_on_top_of_those_before(metrics: Prometheus) -> None:
    before = values(metrics)
    assert before['fedstill_contributions_total{run="heart-1"}'] == 2
    metrics.on_step(STEP)
    found = values(metrics)
    assert found['fedstill_step{run="heart-1"}'] == 1
    assert found['fedstill_steps{run="heart-1"}'] == 4
    assert found['fedstill_seconds_total{run="heart-1"}'] == 3.0
    assert found['fedstill_contributions_total{run="heart-1"}'] == 4
    assert found['fedstill_rejections_total{reason="no-answer",run="heart-1"}'] == 3
    assert found['fedstill_abandoned_total{run="heart-1"}'] == 1
    assert found['fedstill_bytes_total{direction="up",run="heart-1"}'] == 600
    assert found['fedstill_bytes_total{direction="down",run="heart-1"}'] == 80
    assert found['fedstill_last_commit_timestamp_seconds{run="heart-1"}'] > 1.7e9


def test_health_and_other_paths(metrics: Prometheus) -> None:
    metrics.on_step(STEP)
    assert json.loads(ask(metrics, "/health")) == {"run": "heart-1", "step": 1, "steps": 4}
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        ask(metrics, "/else")
    caught.value.close()


def test_two_runs_do_not_share_an_address(metrics: Prometheus) -> None:
    for address in (f"127.0.0.1:{metrics.port}", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="cannot answer there"):
            Prometheus(address, "other", last=1)


def test_lines_of_a_real_run(play_small: Any) -> None:
    records = play_small().folder.records()
    one = Prometheus("127.0.0.1:0", "small", last=3, committed=records)
    try:
        found = values(one)
    finally:
        one.close()
    assert found['fedstill_step{run="small"}'] == records[-1]["step"] == 3
    assert found['fedstill_bytes_total{direction="up",run="small"}'] == sum(step["bytes"]["up"] for step in records)
