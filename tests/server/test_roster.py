from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedstill.common.errors import QuorumError
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.holdings import simulated
from fedstill.server.roster import Roster, gather
from fedstill.simulations.engine import LocalGrid

Small = Callable[..., Scenario]
Play = Callable[..., Any]
Spoil = Callable[[RecordDict], None]


@pytest.fixture
def gathered(small: Small, tampered: Callable[..., ClientApp]) -> Callable[..., Roster]:
    """The roster of a small scenario in which one client's description is spoilt."""

    def make(spoil: Spoil = lambda _: None, *, client: int = 1, least: int = 1) -> Roster:
        scenario = small()

        def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
            reply = inner(message, context)
            if context.node_config["partition-id"] == client:
                spoil(reply.content)
            return reply

        grid = LocalGrid(tampered(tamper), clients=4, run_config={"toml": to_toml(dump(scenario))})
        return gather(grid, simulated(scenario, None), count=4, least=least, deadline=30.0)

    return make


def _head(**values: str | int) -> Spoil:
    return lambda content: content.config_records["fedstill"].update(values)


def _task(**values: Any) -> Spoil:
    named = {key.replace("_", "-"): value for key, value in values.items()}
    return lambda content: content.config_records["task.wine"].update(named)


def _drop(name: str) -> Spoil:
    def spoil(content: RecordDict) -> None:
        del content[name]

    return spoil


def _rename(old: str, new: str) -> Spoil:
    def spoil(content: RecordDict) -> None:
        content[new] = content[old]
        del content[old]

    return spoil


def test_everybody_says_who_they_are(gathered: Callable[..., Roster]) -> None:
    roster = gathered()

    assert roster.names == ("client-0", "client-1", "client-2", "client-3")
    assert len(set(roster.nodes.values())) == 4
    assert roster.refused == {}
    infos = roster.infos("wine")
    assert [info.model for info in infos.values()] == ["linear-softmax", "mlp-small"] * 2
    assert infos["client-0"].parameters == 13 * 3 + 3
    assert [info.examples for info in infos.values()] == [21, 21, 21, 20]
    assert roster.infos("digits") == {}
    assert roster.table()["client-0"]["wine"].keys() == {"model", "parameters", "examples", "classes", "software"}


REFUSED: dict[str, tuple[Spoil, str]] = {
    "another protocol": (_head(protocol=0), r"protocol 0: expected \d+"),
    "no head": (_drop("fedstill"), "expected a record 'fedstill'"),
    "no name": (_head(client=""), "a name or version of 0 characters"),
    "a long name": (_head(client="x" * 101), "a name or version of 101 characters: expected 1 to 100"),
    "a name that a terminal obeys": (_head(client="\x1b[2J"), "a name or version of 4 characters: .* printable"),
    "a long model": (_task(model="x" * 101), "a name or version of 101 characters"),
    "another task": (_rename("task.wine", "task.beer"), "task 'beer': expected one of wine"),
    "no task": (_drop("task.wine"), "client 'client-1' without a task"),
    "another proxy set": (_task(proxy_digest="0" * 64), "proxy set 000000000000: expected"),
    "another output": (_task(output="regression"), "output kind regression: expected categorical"),
    "another modality": (_task(modality="text"), "modality text: expected tabular"),
    "another tokenizer": (_task(tokenizer="0" * 64), "tokenizer 000000000000: expected"),
    "another shape": (_task(input_shape=[12]), r"input shape \(12,\): expected \(13,\)"),
    "unknown classes": (_task(classes=["class_0", "beer"]), r"unknown classes \('beer',\)"),
    "a missing part": (_task(parameters="many"), "'parameters' = 'many': expected a whole number"),
    "classes that are numbers": (_task(classes=[1, 2]), "expected a list of str"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_description_that_does_not_fit_is_refused(gathered: Callable[..., Roster], what: str) -> None:
    spoil, message = REFUSED[what]

    roster = gathered(spoil)

    assert roster.names == ("client-0", "client-2", "client-3")
    (why,) = roster.refused.values()
    with pytest.raises(QuorumError, match=message):  # the reason is told with the shortage
        gathered(spoil, least=4)
    assert len(why) <= 500
    assert why.isprintable()


def test_of_two_nodes_with_one_name_the_first_takes_part(
    gathered: Callable[..., Roster], caplog: pytest.LogCaptureFixture
) -> None:
    roster = gathered(_head(client="client-0"))

    assert roster.names == ("client-0", "client-2", "client-3")
    assert list(roster.refused.values()) == ["a second node calls itself 'client-0'"]
    assert "does not take part: a second node calls itself 'client-0'" in caplog.text


def test_an_odd_name_does_not_break_the_files(play_small: Play, small: Small) -> None:
    odd = 'a "b" = [c] [/d] \\ é 名'

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content.config_records["fedstill"]["client"] = odd
        return reply

    played = play_small(tamper=tamper)

    assert odd in tomllib.loads((played.folder.path / "config.toml").read_text())["roster"]
    assert all(odd in record["accepted"] for record in played.records)


def test_too_few(gathered: Callable[..., Roster]) -> None:
    with pytest.raises(QuorumError) as caught:
        gathered(_head(client="client-0"), least=4)

    assert str(caught.value) == (
        "3 of 4 clients can take part: expected at least 4 within 30 s (a second node calls itself 'client-0')"
    )


def test_missing_nodes_are_waited_for_until_the_deadline(
    small: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scenario = small()
    now = [0.0]
    monkeypatch.setattr("fedstill.server.roster.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fedstill.server.roster.time.sleep", lambda pause: now.__setitem__(0, now[0] + pause))

    class Slow(LocalGrid):
        def get_node_ids(self) -> list[int]:
            return list(super().get_node_ids())[: int(now[0])]

    def grid() -> Slow:
        return Slow("fedstill.client.app:app", clients=4, run_config={"toml": to_toml(dump(scenario))})

    assert len(gather(grid(), simulated(scenario, None), count=4, least=2, deadline=30.0).names) == 4
    assert now[0] == pytest.approx(4.0, abs=0.3)
    assert [record.getMessage() for record in caplog.records] == [
        f"{here} of 4 clients are here; waiting up to 30 s for the others" for here in range(4)
    ]
    now[0] = 0.0
    assert len(gather(grid(), simulated(scenario, None), count=4, least=2, deadline=3.1).names) == 3
