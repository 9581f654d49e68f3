"""Runs of sites that have a mind of their own, and a ServerApp that holds the public pack alone."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedstill.common.errors import DataError
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.app import app as server_app
from fedstill.server.folder import RunFolder, new_folder, open_folder
from fedstill.server.launch import launch
from fedstill.server.state import RunState
from fedstill.simulations.engine import LocalGrid
from fedstill.simulations.run import local_grid, simulate
from fedstill.simulations.split import PUBLIC, SITES, site_files, split

Small = Callable[..., Scenario]


@pytest.fixture
def parties(tmp_path: Path, small: Small) -> Path:
    """What four sites and the server hold."""
    split(small(), tmp_path / "out", data_dir=None)
    return tmp_path / "out"


def change(parties: Path, site: str, **tables: Mapping[str, Any]) -> None:
    path = parties / SITES / site / "client.toml"
    table = tomllib.loads(path.read_text())
    for name, own in tables.items():
        table[name] = {**table.get(name, {}), **own}
    path.write_text(to_toml(table))


def played(scenario: Scenario, parties: Path, path: Path) -> RunFolder:
    folder = new_folder(path, scenario, data_dir=None)
    simulate(scenario, folder, sites=parties)
    return folder


def rejections(folder: RunFolder) -> list[list[tuple[str, str]]]:
    return [[(one["client"], one["reason"]) for one in record["rejected"]] for record in folder.records()]


def test_a_site_that_has_had_enough_is_counted_as_such(
    parties: Path, small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(parties, "client-2", policy={"rounds-per-day": 2})
    caplog.set_level(logging.INFO, "fedstill")

    folder = played(small(), parties, tmp_path / "run")

    refused = [("client-2", "refused")]
    assert rejections(folder) == [[], [], refused, refused]
    (detail,) = {one["detail"].partition(" (")[0] for one in folder.records()[2]["rejected"]}
    assert detail == "2 orders in the last 24 hours: this client works on 2"
    # Both sides say so, each in its own log.
    ours = [record.getMessage() for record in caplog.records if record.name == "fedstill.server.rounds"]
    theirs = [record.getMessage() for record in caplog.records if record.name == "fedstill.client.app"]
    assert any(line.startswith(f"round 2: client-2 does not count: refused: {detail}") for line in ours)
    assert any(f"run run, train.round 2, node 4: refused: {detail}" in line for line in theirs)


def test_a_site_that_lets_out_no_measures(parties: Path, small: Small, tmp_path: Path) -> None:
    change(parties, "client-1", policy={"measures": False})

    folder = played(small(), parties, tmp_path / "run")

    assert rejections(folder) == [[]] * 4
    for record in folder.records():
        clients = record["tasks"]["wine"]["clients"]
        assert not clients.get("client-1")
        assert clients["client-0"]
    assert (folder.path / "report.html").stat().st_size > 10_000


def test_a_site_with_other_public_samples_does_not_take_part(
    parties: Path, small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split(small({"seed": 7}), tmp_path / "other", data_dir=None)
    change(parties, "client-3", policy={"proxy-digests": []})
    path = parties / SITES / "client-3" / "client.toml"
    path.write_text(path.read_text().replace("../../public", str(tmp_path / "other" / PUBLIC)))

    folder = played(small({"rounds.deadline": 5}), parties, tmp_path / "run")

    assert folder.records()[1]["cohort"] == ["client-0", "client-1", "client-2"]
    told = [record.getMessage() for record in caplog.records if "does not take part" in record.getMessage()]
    assert len(told) == 1
    assert "other-proxy-set: the server's task 'wine': proxy set" in told[0]
    assert "give both sides the same public pack" in told[0]


def test_a_student_that_is_lost_is_told_again(parties: Path, small: Small, tmp_path: Path) -> None:
    scenario = small({"rounds.count": 3, "codec": "sqrtp"})
    folder = new_folder(tmp_path / "run", scenario, data_dir=None)
    students = folder.clients / "client-1" / "runs" / "run"

    def spoil(state: RunState) -> None:
        if state.step == 2:
            (newest,) = students.glob("student-000002-*")
            newest.write_bytes(newest.read_bytes()[:-1])

    grid = local_grid(scenario, folder, data_dir=None, sites=parties)
    launch(scenario, grid, folder, public=parties / PUBLIC, committed=spoil)

    assert [record["restarted"] for record in folder.records()] == [[], [], [], ["client-1"], []]
    assert rejections(folder) == [[]] * 5


def test_a_run_of_sites_goes_on(parties: Path, small: Small, tmp_path: Path) -> None:
    scenario = small({"rounds.count": 3})
    whole = played(scenario, parties, tmp_path / "a" / "run")
    folder = new_folder(tmp_path / "b" / "run", scenario, data_dir=None)

    class StoppedError(Exception):
        pass

    def stop(state: RunState) -> None:
        if state.step == 2:
            raise StoppedError

    grid = local_grid(scenario, folder, data_dir=None, sites=parties)
    with pytest.raises(StoppedError):
        launch(scenario, grid, folder, public=parties / PUBLIC, committed=stop)
    # The last checkpoint is gone: two rounds are asked for again, and answered as before.
    for path in (folder.path / "checkpoints").glob("step-000002*"):
        path.unlink()
    again = open_folder(folder.path)
    simulate(scenario, again, sites=parties)

    def told(one: RunFolder) -> list[dict[str, Any]]:
        return [{key: value for key, value in record.items() if key != "seconds"} for record in one.records()]

    assert told(again) == told(whole)


CODED: dict[str, Mapping[str, Any]] = {
    "labels in context": {"codec": "sqrtp", "algorithm.name": "fedstill"},
    "labels that clients keep": {"codec": "sqrtp", "algorithm.name": "scarlet", "rounds.count": 4},
    "weights": {"algorithm.name": "fedavg", "tasks.wine.models": ["mlp-small"]},
    "each client its own": {"algorithm.name": "kt-pfl", "codec": "fp16"},
    "a teacher that asks for few": {"codec": "topk", "tasks.wine.proxy": {"samples": 40, "per-round": 20}},
}


@pytest.mark.parametrize("what", CODED)
def test_a_round_that_is_tried_again_is_answered_again(
    small: Small, tmp_path: Path, tampered: Callable[..., ClientApp], what: str
) -> None:
    """The second attempt is coded without the context of the first, and is the same order all the same."""
    scenario = small({"rounds.count": 3, "clients.quorum": 1.0, **CODED[what]})
    split(scenario, tmp_path / "out", data_dir=None)
    failed: list[object] = []

    def tamper(message: Message, context: Context, inner: ClientApp) -> Message:
        reply = inner(message, context)
        number = message.content.config_records["fedstill"].get("round")
        if context.node_config["partition-id"] == 0 and number in (2, 3) and number not in failed:
            failed.append(number)
            raise RuntimeError("the line is cut")
        return reply

    folder = new_folder(tmp_path / "run", scenario, data_dir=None)
    nodes = [{"site": str(path)} for path in site_files(tmp_path / "out")]
    grid = LocalGrid(
        tampered(tamper), clients=4, node_configs=nodes, node_config={"store": str(folder.clients.resolve())}
    )
    launch(scenario, grid, folder, public=tmp_path / "out" / PUBLIC)

    assert failed == [2, 3]
    tried = [(record["step"], record["attempt"], len(record["abandoned"])) for record in folder.records()]
    assert [(step, attempt) for step, attempt, _ in tried if attempt > 1] == [(2, 2), (3, 2)]
    assert rejections(folder) == [[]] * len(tried)


# A ServerApp with the pack alone --------------------------------------------------------------------------------------


def serve(scenario: Scenario, parties: Path, run: Path, tmp_path: Path) -> RunFolder:
    """A run as Flower starts it: all that the server has is the pack and the run's configuration."""
    config: dict[str, str | int | float | bool] = {
        "toml": to_toml(dump(scenario)),
        "public": str(parties / PUBLIC),
        "run-dir": str(run),
    }
    grid = local_grid(scenario, RunFolder(tmp_path / "students"), data_dir=None, sites=parties)
    server_app(grid, Context(1, 1, {}, RecordDict(), config))
    return RunFolder(run)


def test_a_server_that_has_the_pack_alone(
    parties: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSTILL_DATA", raising=False)
    scenario = small({"teacher.kind": "model"})
    whole = played(scenario, parties, tmp_path / "a" / "run")

    folder = serve(scenario, parties, tmp_path / "b" / "run", tmp_path)

    mine, theirs = (
        [{key: value for key, value in record.items() if key != "seconds"} for record in one.records()]
        for one in (folder, whole)
    )
    assert mine == theirs
    assert folder.config()["public"] == str(parties / PUBLIC)
    assert folder.config()["data-dir"] == ""


def test_a_server_without_labels_of_public_samples(small: Small, tmp_path: Path) -> None:
    split(small(), tmp_path / "out", data_dir=None, labels=False)

    folder = serve(small(), tmp_path / "out", tmp_path / "run", tmp_path)

    assert rejections(folder) == [[]] * 4
    measured = folder.records()[1]["tasks"]["wine"]
    assert measured["clients"]["client-0"]["trained.accuracy"] > 0


def test_a_pack_that_is_not_there(parties: Path, small: Small, tmp_path: Path) -> None:
    (parties / PUBLIC / "pack.toml").unlink()

    with pytest.raises(DataError, match="name the folder of a pack"):
        serve(small(), parties, tmp_path / "run", tmp_path)
