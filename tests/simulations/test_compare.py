"""A comparison from the command line on: what it finds, what it does not run again, what fails, what it writes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedstill.common.errors import RunFolderError
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.server.folder import RunFolder
from fedstill.server.summary import summary
from fedstill.simulations import cli
from fedstill.simulations.compare import work
from fedstill.simulations.compare.command import compare
from fedstill.simulations.compare.comparison import Comparison
from fedstill.simulations.compare.plan import plan
from fedstill.simulations.compare.work import play_all, run_path, standing

Small = Callable[..., Scenario]

METHODS = ("fedmd", "local")
SEEDS = (1, 2)
RUNS = [f"{method}/seed-{seed}" for seed in SEEDS for method in METHODS]


def compared(folder: Path, scenario: str, **others: Any) -> tuple[Comparison, str]:
    """A comparison, and what it printed."""
    stream = StringIO()
    wanted: dict[str, Any] = {"methods": METHODS, "seeds": SEEDS, "changes": {}, "workers": 2, "data_dir": None}
    found = compare(
        [scenario], **wanted | others, folder=folder, console=Console(file=stream, width=170, color_system=None)
    )
    return found, stream.getvalue()


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Path:
    path = tmp_path_factory.mktemp("scenarios") / "small.toml"
    path.write_text(to_toml(dump(small())))
    return path


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, scenario: Path) -> tuple[Path, Comparison, str]:
    folder = tmp_path_factory.mktemp("compared")
    return (folder, *compared(folder, str(scenario)))


@pytest.fixture
def again(played: tuple[Path, Comparison, str], tmp_path: Path) -> Path:
    """A copy of the finished comparison, to be damaged."""
    shutil.copytree(played[0], tmp_path / "compared")
    return tmp_path / "compared"


def written(folder: Path) -> dict[str, int]:
    """When each run's records were written last."""
    return {run: (folder / "runs" / "small" / run / "rounds.jsonl").stat().st_mtime_ns for run in RUNS}


def without_clock(table: Any) -> Any:
    if isinstance(table, dict):
        return {key: without_clock(value) for key, value in table.items() if key not in ("seconds", "kept")}
    return [without_clock(value) for value in table] if isinstance(table, list) else table


# The table -----------------------------------------------------------------------------------------------------------


def test_table_in_numbers(played: tuple[Path, Comparison, str]) -> None:
    folder, found, _ = played

    assert [(row.subject, row.task, row.measure, row.method, row.runs) for row in found.rows] == [
        ("small", "wine", "accuracy", "fedmd", 2),
        ("small", "wine", "accuracy", "local", 2),
    ]
    fedmd, local = found.rows
    ends = {run: summary(RunFolder(folder / "runs" / "small" / run)).tasks[0] for run in RUNS}
    means = [ends[f"fedmd/seed-{seed}"].after or 0 for seed in SEEDS]
    assert fedmd.clients is not None
    assert (fedmd.clients.mean, fedmd.clients.spread) == (statistics.fmean(means), statistics.stdev(means))
    floor = {seed: {c.name: c.after or 0 for c in ends[f"local/seed-{seed}"].clients} for seed in SEEDS}
    gains = [
        statistics.fmean((c.after or 0) - floor[seed][c.name] for c in ends[f"fedmd/seed-{seed}"].clients)
        for seed in SEEDS
    ]
    assert fedmd.gain is not None
    assert fedmd.gain.mean == pytest.approx(statistics.fmean(gains))
    assert fedmd.worst is not None
    assert fedmd.worst.mean == statistics.fmean(
        min(c.after or 0 for c in ends[f"fedmd/seed-{seed}"].clients) for seed in SEEDS
    )
    assert (local.gain and local.gain.mean, local.to_target, fedmd.teacher) == (0, None, None)
    assert fedmd.worst_class is not None


def test_budgets_are_counted_and_equal(played: tuple[Path, Comparison, str]) -> None:
    folder, found, _ = played

    # 178 wines: 40 proxy samples, a fifth of the rest to test with, 4 clients who keep a fifth aside: two batches of 16
    # for each client; two rounds of one epoch.
    fedmd, local = found.rows
    examples = RunFolder(folder / "runs/small/local/seed-1").config()["roster"]
    assert all(16 < client["wine"]["examples"] <= 32 for client in examples.values())
    assert [row.private and row.private.mean for row in found.rows] == [4 * 2 * 2] * 2
    # FedMD digests 40 proxy samples (three batches) in two epochs, in round 2 and at the end.
    assert fedmd.further is not None
    assert fedmd.further.mean == 4 * 2 * 3 * 2
    assert (local.further and local.further.mean, local.server and local.server.mean) == (0, 0)
    assert found.unequal == ()


def test_bytes_are_those_of_the_rounds_and_the_finish(played: tuple[Path, Comparison, str]) -> None:
    folder, found, _ = played

    for one in found.figures:
        records = RunFolder(folder / "runs" / "small" / one.method / f"seed-{one.seed}").records()[1:]
        assert (one.up, one.down) == tuple(sum(record["bytes"][way] for record in records) for way in ("up", "down"))
        # The last value was measured when everything had passed but those measures themselves.
        last = (one.up + one.down,) if one.method == "fedmd" else ()
        assert one.bytes[-1:] == tuple(spent - records[-1]["bytes"]["up"] for spent in last)
        assert one.to_target is None or one.to_target in one.bytes


def test_what_is_printed(played: tuple[Path, Comparison, str]) -> None:
    folder, _, text = played

    assert text.startswith(f"4 runs in {folder}\n")
    assert len(re.findall(r"^\d/4  small, (fedmd|local), seed [12]  finished$", text, re.MULTILINE)) == 4
    assert re.search(r"^ small: accuracy +fedmd +2 +\d+\.\d ± \d+\.\d ", text, re.MULTILINE)
    assert "private steps (of all clients)" in text


def test_files(played: tuple[Path, Comparison, str]) -> None:
    folder, found, _ = played

    assert {path.name for path in folder.iterdir()} == {
        "runs",
        *(f"comparison.{kind}" for kind in ("md", "csv", "json", "html")),
    }
    lines = (folder / "comparison.md").read_text().splitlines()
    assert lines[2] == (
        "| scenario | measure | method | runs | clients | worst client | worst class | gain | bytes up | bytes down "
        "| bytes to 90 % | seconds | private steps | further steps | server steps |"
    )
    assert [line.split(" | ")[2] for line in lines[4:6]] == ["fedmd", "local"]
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["fedmd", "local"]
    assert found.rows[0].clients is not None
    assert float(rows[0]["clients"]) == found.rows[0].clients.mean
    assert rows[0]["teacher"] == ""
    told = json.loads((folder / "comparison.json").read_text())
    assert list(told) == [
        *("scenarios", "methods", "seeds", "rows", "runs", "not-applicable", "failed", "kept", "unequal", "options"),
        "ranks",
    ]
    assert [(one["method"], one["seed"]) for one in told["runs"]] == [
        (method, seed) for seed in SEEDS for method in METHODS
    ]
    assert told["options"]["small"]["fedmd"] == {"temperature": 1.0, "digest-epochs": 2, "scores": "probabilities"}


class Page(HTMLParser):
    """Whether a page is well nested, and what it points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.outside: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag not in ("meta", "br", "link", "img", "use", "path"):
            self.open.append(tag)
        if tag == "svg":
            self.pictures.append(str(told.get("aria-label")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self.outside += [tag] if tag in ("link", "script", "img", "iframe") else []
        self.outside += [value for key, value in attrs if key in ("src", "href") and value and value[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def test_page_is_whole_and_needs_nothing_from_outside(played: tuple[Path, Comparison, str]) -> None:
    folder, _, _ = played

    text = (folder / "comparison.html").read_text()
    page = Page(text)

    assert (page.open, page.outside) == ([], [])
    assert "@import" not in text
    assert "url(http" not in text
    assert [label.split(".")[0].split(",")[0] for label in page.pictures] == [
        "accuracy by round",
        "accuracy over bytes",
        "Gain of each client over alone",
    ]
    assert [row[:4] for row in page.rows[:3]] == [
        ["Method", "Scenario", "Measure", "Runs"],
        ["fedmd", "small", "accuracy", "2"],
        ["local", "small", "accuracy", "2"],
    ]


# Going on -------------------------------------------------------------------------------------------------------------


def test_finished_runs_are_not_run_again(again: Path, scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, table = written(again), json.loads((again / "comparison.json").read_text())
    monkeypatch.setattr(work, "ProcessPoolExecutor", None)  # no process is begun

    found, text = compared(again, str(scenario))

    assert (found.kept, written(again)) == (4, before)
    assert text.count("  kept") == 4
    assert without_clock(json.loads((again / "comparison.json").read_text())) == without_clock(table)


@pytest.mark.parametrize("harm", ["removed", "checkpoints gone", "records gone", "under way", "a file"])
def test_what_is_not_finished_is_run_again_alone(again: Path, scenario: Path, harm: str) -> None:
    table = json.loads((again / "comparison.json").read_text())
    run = again / "runs/small/fedmd/seed-2"
    if harm in ("removed", "a file"):
        shutil.rmtree(run)
    if harm == "a file":
        run.write_text("?")
    if harm == "checkpoints gone":
        for path in (run / "checkpoints").iterdir():
            path.write_bytes(b"?")
    if harm == "records gone":
        lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
        (run / "rounds.jsonl").write_text(lines[0] + lines[3])
    if harm == "under way":
        for kind in ("json", "safetensors"):
            (run / "checkpoints" / f"step-000003.{kind}").unlink()
    before = written(again) if run.is_dir() else {}

    found, text = compared(again, str(scenario), workers=1)

    assert found.kept == 3
    assert re.findall(r"^4/4 .*", text, re.MULTILINE) == ["4/4  small, fedmd, seed 2  finished"]
    assert {run for run, time in before.items() if written(again)[run] != time} <= {"fedmd/seed-2"}
    assert without_clock(json.loads((again / "comparison.json").read_text())) == without_clock(table)


def test_a_folder_of_other_runs_is_refused(again: Path, scenario: Path) -> None:
    with pytest.raises(RunFolderError, match=r"another scenario: rounds.count: 2 / 3"):
        compared(again, str(scenario), changes={"rounds.count": 3})


def test_standing_of_a_new_folder(tmp_path: Path, small: Small) -> None:
    assert standing(tmp_path / "nothing", small()) == "none"


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_a_failing_run_is_counted_and_the_others_go_on(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["fedstill", "compare", str(scenario), "--methods", "fedmd,local,fedavg", "--seeds", "1", "--json"]
    words += ["--set", "teacher.kind=pretrained", "--set", "teacher.path=nowhere.safetensors"]
    monkeypatch.setattr(sys, "argv", [*words, "--run-dir", str(tmp_path / "compared")])

    with pytest.raises(SystemExit) as left:
        cli.main()

    out, err = capfd.readouterr()
    told = json.loads(out)
    assert left.value.code == 1
    assert [row["method"] for row in told["rows"]] == ["local"]
    assert [(one["run"], one["method"], one["seed"]) for one in told["failed"]] == [("small/fedmd/seed-1", "fedmd", 1)]
    assert "nowhere.safetensors" in told["failed"][0]["reason"]
    assert "1 run failed:" in err
    assert told["not-applicable"] == [
        {
            "subject": "small",
            "method": "fedavg",
            "reason": "clients have several models (linear-softmax, mlp-small), the method needs one",
        }
    ]
    assert not (tmp_path / "compared" / "runs" / "small" / "fedavg").exists()


def test_what_a_run_refuses_before_its_first_step_is_not_applicable(scenario: Path, tmp_path: Path) -> None:
    found, text = compared(tmp_path, str(scenario), methods=("features", "local"), seeds=(1,))

    assert [(one.subject, one.method) for one in found.unfit] == [("small", "features")]
    assert "not applicable: features on small: model 'linear-softmax'" in text
    assert found.failed == ()


def test_a_process_that_dies_is_found_out(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "def play(path, toml, data_dir):\n"
        "    if 'fedmd' in str(path): os._exit(9)\n"
        "    return 'finished', ''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import deadly  # type: ignore[import-not-found]

    monkeypatch.setattr(work, "_play", deadly.play)
    wanted = plan([str(scenario)], ["fedmd", "local"], [1])

    outcomes = play_all(wanted, tmp_path / "compared", data_dir=None, workers=2)

    assert [(one.cell.method, one.state, one.reason) for one in outcomes] == [
        ("fedmd", "failed", "the process died"),
        ("local", "finished", ""),
    ]
    assert not run_path(tmp_path / "compared", wanted.cells[0]).exists()
