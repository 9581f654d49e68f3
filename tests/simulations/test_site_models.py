"""Trained models of a run whose parties read their own files only: they are exported and served as any other run's."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedstill.client.card import read_card
from fedstill.client.store import Store
from fedstill.common.scenario import Scenario
from fedstill.server.folder import RunFolder, new_folder
from fedstill.simulations import cli
from fedstill.simulations.run import simulate
from fedstill.simulations.split import SITES, split
from fedstill.simulations.trained import student_store, students


@pytest.fixture(scope="module")
def parties(small: Callable[..., Scenario], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parties") / "out"
    split(_taught(small), folder, data_dir=None)
    return folder


@pytest.fixture(scope="module")
def run(parties: Path, small: Callable[..., Scenario], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    scenario = _taught(small)
    folder = new_folder(tmp_path_factory.mktemp("runs") / "wines", scenario, data_dir=None)
    folder.add(sites=str(parties))
    simulate(scenario, folder, sites=parties)
    return folder


def _taught(small: Callable[..., Scenario]) -> Scenario:
    return small({"teacher.kind": "model", "tasks.wine.teacher": "mlp-small"})


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Runs `fedstill export … --json` in a folder of its own; gives exit code, what it printed, and complaints."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Any:
        monkeypatch.setattr(sys, "argv", ["fedstill", "export", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as done:
            cli.main()
        printed = capsys.readouterr()
        if done.value.code:
            return done.value.code, printed.err
        return json.loads(printed.out)

    return call


def test_a_students_export(run: RunFolder, parties: Path, export: Callable[..., Any], tmp_path: Path) -> None:
    told = export(run.path, "--client", "client-1", "--out", "student")
    last = run.records()[-1]["tasks"]["wine"]["clients"]["client-1"]
    assert told["exported"]["measures"]["accuracy"] == pytest.approx(last["final.accuracy"])
    card = read_card(tmp_path / "student")
    assert (card.origin.client, card.origin.run, card.origin.step) == ("client-1", "wines", 3)
    assert card.preparation is not None

    # On the site's own machine there is its folder of students, and its client.toml.
    store = tmp_path / "store" / "runs" / "wines"
    shutil.copytree(student_store(run, "client-1").folder, store)
    own = export(store, "--site", parties / SITES / "client-1" / "client.toml", "--out", "own")
    assert own["folder"] == "own"
    assert read_card(tmp_path / "own").origin == card.origin


def test_the_teachers_export_needs_the_pack_alone(run: RunFolder, export: Callable[..., Any], tmp_path: Path) -> None:
    told = export(run.path, "--out", "teacher")
    assert told["exported"]["measures"]["accuracy"] == pytest.approx(
        run.records()[-2]["tasks"]["wine"]["server"]["accuracy"]
    )
    assert read_card(tmp_path / "teacher").origin.step == 3


def test_what_is_refused(run: RunFolder, parties: Path, export: Callable[..., Any]) -> None:
    file = parties / SITES / "client-1" / "client.toml"
    code, line = export(student_store(run, "client-1").folder, "--site", file, "--scenario", "digits")
    assert (code, "--scenario digits with --site" in line) == (2, True)
    code, line = export(run.path, "--client", "client-1", "--site", file)
    assert (code, "a run has its own" in line) == (2, True)
    code, line = export(run.path, "--client", "client-9")
    assert (code, "client-9" in line) == (4, True)


def test_students_are_found(run: RunFolder) -> None:
    store = student_store(run, "client-2")
    assert store.folder == run.clients / "client-2" / "runs" / "wines"
    assert max(Store(store.folder).versions()) == 3
    (served,) = students(run, "client-2")
    assert (served.name, served.version) == ("wine", "3")
