from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fedstill.client.work import Worker
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.common.sources import named_scenarios
from fedstill.server.folder import RunFolder
from fedstill.server.summary import summary
from fedstill.simulations import cli

Small = Callable[..., Scenario]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def fedstill(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command, from its entry point on, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSTILL_DATA", raising=False)

    def run(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedstill", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def scenario_file(tmp_path: Path, small: Small) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(to_toml(dump(small())))
    return path


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys, fedstill.simulations.cli as cli\n"
        "sys.argv = ['fedstill', 'simulate', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'flwr', 'numpy', 'sklearn', 'datasets', 'matplotlib', 'tensorboard', 'ray', 'pydantic'}\n"
        "print('loaded', sorted(heavy & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--help",),
        ("simulate", "-h"),
        ("list", "-h"),
        ("report", "-h"),
        ("doctor", "-h"),
        ("compare", "-h"),
        ("serve", "-h"),
    ],
)
def test_help(fedstill: Command, words: tuple[str, ...]) -> None:
    done = fedstill(*words)

    assert "Usage: fedstill" in done.out + done.err
    assert done.code == (0 if words else 2)


def test_version(fedstill: Command) -> None:
    assert fedstill("--version") == Done(0, f"fedstill {version('fedstill')}\n", "")


# simulate -----------------------------------------------------------------------------------------------------------


def test_simulate_shows_a_run_and_where_it_lies(fedstill: Command, scenario_file: Path) -> None:
    done = fedstill("simulate", scenario_file)

    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "small: no description"
    assert [line.split()[0] for line in lines[1:5]] == ["alone", "round", "round", "finish"]
    assert "After 2 rounds of fedmd, the mean accuracy of 4 clients is" in " ".join(lines)
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("small-")
    assert f"run folder  {run}" in lines
    assert f"report      {run / 'report.html'}  (open it in a browser)" in lines
    assert RunFolder(run).report.stat().st_size > 10_000


def test_json_on_standard_output_is_the_summary(fedstill: Command, scenario_file: Path, tmp_path: Path) -> None:
    done = fedstill("simulate", scenario_file, "--run-dir", tmp_path / "r", "--json")

    folder = RunFolder(tmp_path / "r")
    assert json.loads(done.out) == {
        **json.loads(json.dumps(summary(folder).table())),
        "folder": str(folder.path),
        "report": str(folder.report),
    }
    assert "round 1/2" in done.err  # the lines of the rounds are no JSON


def test_keys_are_changed_on_the_command_line(fedstill: Command, scenario_file: Path, tmp_path: Path) -> None:
    changes = [
        "rounds.count=1",
        "algorithm.temperature=2.5",
        "alone=false",
        "tasks.wine.models=mlp-small,mlp-medium",
        "tasks.wine.clients=[0, 1, 2, 3]",
        "teacher.kind=model",
        "name=mine",
    ]

    done = fedstill("simulate", scenario_file, "--run-dir", tmp_path / "r", *(w for c in changes for w in ("--set", c)))

    assert done.code == 0, done.err
    table = RunFolder(tmp_path / "r").config()["scenario"]
    assert table["algorithm"]["temperature"] == 2.5
    assert table["tasks"]["wine"]["models"] == ["mlp-small", "mlp-medium"]
    assert table["tasks"]["wine"]["clients"] == [0, 1, 2, 3]
    assert (table["alone"], table["name"], table["teacher"]["kind"]) == (False, "mine", "model")


REFUSED: dict[str, tuple[str, int, str]] = {
    "unknown key": ("rounds.cuont=3", 2, "unknown key 'rounds.cuont': expected a key of this table {count}"),
    "unknown table": ("round.count=3", 2, "unknown key 'round': expected a key of this table {rounds}"),
    "unknown algorithm": ("algorithm.name=fedmb", 2, "algorithm 'fedmb': expected a known algorithm {fedmd}"),
    "unknown option": ("algorithm.temprature=3", 2, "unknown key 'algorithm.temprature': expected a key of this table"),
    "unknown model": ("tasks.wine.models=mlp-smal", 2, "model 'mlp-smal': expected a known model {mlp-small}"),
    "unknown server model": ("tasks.wine.teacher=mlp-smal", 2, "model 'mlp-smal': expected a known model {mlp-small}"),
    "unfit model": ("tasks.wine.models=cnn-small", 2, "model 'cnn-small' for task 'wine' of modality 'tabular'"),
    "unknown teacher": ("teacher.kind=modle", 2, "teacher 'modle': expected a known teacher {model}"),
    "unknown codec": ("codec=fp61", 2, "codec 'fp61': expected a known codec (did you mean 'fp16'"),
    "word for a number": ("rounds.count=many", 2, "rounds.count = 'many': input should be a valid integer"),
    "number for a list": ("tasks.wine.models=3", 2, "tasks.wine.models = 3: input should be a valid tuple"),
    "value out of range": ("algorithm.temperature=0", 2, "algorithm_temperature=0.0: expected > 0"),
    "key without a value": ("rounds.count", 2, "--set rounds.count: expected KEY=VALUE"),
    "method that cannot": ("algorithm.name=fedavg", 2, "algorithm 'fedavg' with models linear-softmax"),
    "missing data": ("tasks.wine.source=none.csv", 3, "data 'none.csv': expected it at none.csv (name the folder"),
    "client without a task": ("tasks.wine.clients=[0]", 2, "client 1 without a task: expected one for every client"),
    "too many clients": ("clients.count=50", 3, "client 0 with 3 examples: expected at least partition.minimum=10"),
}
"""A change of the small scenario, the exit code, and the message; {x} stands for the nearest known name."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_run_is_told_in_one_line(fedstill: Command, scenario_file: Path, what: str) -> None:
    change, code, message = REFUSED[what]

    done = fedstill("simulate", scenario_file, "--set", change)

    assert done.code == code, done.err
    (line,) = done.err.splitlines()
    assert line.startswith("error: " + message.replace("{", "(did you mean '").replace("}", "'?)"))
    assert not list(Path("runs").glob("*"))  # nothing was committed, and nothing is left


def test_a_scenario_or_folder_that_is_not_there(fedstill: Command) -> None:
    unknown = "error: scenario 'digit': expected a known scenario or a .toml file (did you mean 'digits'?)\n"
    assert (fedstill("simulate", "digit").code, fedstill("simulate", "digit").err) == (2, unknown)
    done = fedstill("simulate", "digits", "--data-dir", "nowhere")
    assert (done.code, done.err.split(" (")[0]) == (2, "error: --data-dir nowhere: expected a folder")


def test_a_file_that_is_no_scenario(fedstill: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    assert "error: scenario 'broken.toml': is no TOML" in fedstill("simulate", "broken.toml").err
    assert "error: scenario file 'none.toml': cannot be read" in fedstill("simulate", "none.toml").err
    (tmp_path / "empty.toml").write_text("")
    done = fedstill("simulate", "empty.toml")
    assert (done.code, "Traceback" in done.err) == (2, False)


def test_a_damaged_data_file(fedstill: Command, tmp_path: Path, small: Small) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "table.csv").write_text("a,b,label\n1,2,x\n1,2\n")
    task = {"kind": "tabular", "source": "table.csv", "models": ["linear-softmax"]}
    (tmp_path / "s.toml").write_text(to_toml({**dump(small()), "tasks": {"t": task}}))

    done = fedstill("simulate", "s.toml", "--data-dir", "data")

    assert done.code == 3
    assert "table.csv: row 2 of 2 cells: expected 3" in done.err


# Runs that exist ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(fedstill: Command, scenario_file: Path) -> Path:
    done = fedstill("simulate", scenario_file, "--run-dir", Path("runs") / "mine")
    assert done.code == 0, done.err
    return Path("runs") / "mine"


def test_a_run_is_resumed_by_folder_or_name(fedstill: Command, run: Path, scenario_file: Path) -> None:
    for words in (["--resume", run], ["--resume", "mine"], [scenario_file, "--resume", run]):
        done = fedstill("simulate", *words)
        assert (done.code, done.err) == (0, "")
        assert f"run folder  {run}" in done.out


def test_a_run_of_another_scenario_is_not_resumed(fedstill: Command, run: Path, scenario_file: Path) -> None:
    before = (run / "rounds.jsonl").read_bytes()

    done = fedstill("simulate", scenario_file, "--set", "seed=2", "--set", "rounds.count=9", "--resume", run)

    assert done.code == 4
    assert done.err.strip() == (
        f"error: run folder {run}: belongs to another scenario: rounds.count: 2 / 9; seed: 1 / 2 "
        "(resume without naming a scenario, or begin a new run)"
    )
    assert (run / "rounds.jsonl").read_bytes() == before


def test_resume_takes_no_changes(fedstill: Command, run: Path) -> None:
    for words in (["--set", "seed=2"], ["--run-dir", "other"]):
        done = fedstill("simulate", "--resume", run, *words)
        assert done.code == 2
        assert "a run goes on as it began" in done.err


def test_a_folder_in_use_is_not_overwritten(fedstill: Command, run: Path, scenario_file: Path) -> None:
    done = fedstill("simulate", scenario_file, "--run-dir", run)

    assert done.code == 4
    assert f"error: run folder {run}: exists already (resume it with --resume, or name another one)" in done.err
    assert len(RunFolder(run).records()) == 4


def test_a_run_that_is_not_there(fedstill: Command, run: Path) -> None:
    for words in (["simulate", "--resume", "mien"], ["report", "mien"]):
        done = fedstill(*words)
        assert done.code == 4
        assert "run 'mien': expected a run folder, or the name of one below runs/ (did you mean 'mine'?)" in done.err
    Path("plain").mkdir()
    done = fedstill("report", "plain")
    assert done.code == 4
    assert "config.toml cannot be read" in done.err


def test_a_report_is_written_anew(fedstill: Command, run: Path) -> None:
    (run / "report.html").unlink()

    done = fedstill("report", "mine")

    assert done.code == 0
    assert done.out.startswith("After 2 rounds of fedmd, ")
    assert done.out.splitlines()[-1] == f"report  {run / 'report.html'}"
    assert (run / "report.html").stat().st_size > 10_000
    told = json.loads(fedstill("report", run, "--json").out)
    assert (told["folder"], told["report"]) == (str(run), str(run / "report.html"))


def test_a_failed_run_says_how_to_go_on(
    fedstill: Command, scenario_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: Any) -> None:
        raise RuntimeError("no power")

    monkeypatch.setattr(Worker, "round", fail)

    done = fedstill("simulate", scenario_file, "--run-dir", "r")

    assert done.code == 4
    notes = [line for line in done.err.splitlines() if not line.startswith("round 1, attempt")]
    assert notes[0] == "what was committed is kept; go on with: fedstill simulate --resume r"
    assert notes[1].startswith("error: round 1: 0 of 4 clients answered, 3 times: expected at least 2 (4 client-error")


# list and doctor ----------------------------------------------------------------------------------------------------

KINDS = {
    "algorithms": {"fedmd", "fedavg", "dsfl", "feddf", "local", "central"},
    "tasks": {"image", "text", "tabular"},
    "models": {"linear-softmax", "mlp-small", "cnn-small"},
    "teachers": {"consensus", "model", "pretrained"},
    "codecs": {"raw", "fp16"},
    "queries": {"random", "uncertain", "disagreement", "novelty"},
    "scenarios": {"digits"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_list_a_kind(fedstill: Command, kind: str) -> None:
    shown, told = fedstill("list", kind), fedstill("list", kind, "--json")

    entries = json.loads(told.out)[kind]
    assert KINDS[kind] <= entries.keys()
    assert all(entry["what"].strip() for entry in entries.values())
    assert shown.out.splitlines()[0].strip() == kind
    assert all(name in shown.out for name in entries)


def test_list_everything(fedstill: Command) -> None:
    found = json.loads(fedstill("list", "--json").out)

    assert list(found) == list(KINDS)
    assert found["algorithms"]["fedmd"]["paper"].endswith("https://arxiv.org/abs/1910.03581")
    assert set(found["scenarios"]) == set(named_scenarios())
    assert fedstill("list", "things").code == 2


def test_doctor_finds_this_machine_healthy(fedstill: Command) -> None:
    done = fedstill("doctor")

    assert done.code == 0
    assert "data folder" in done.out
    told = json.loads(fedstill("doctor", "--json").out)
    assert told["healthy"] is True
    assert {"Python", "fedstill", "torch", "flwr", "threads", "disk", "student store"} <= {
        check["what"] for check in told["checks"]
    }


def test_doctor_finds_a_wrong_data_folder(fedstill: Command) -> None:
    done = fedstill("doctor", "--data-dir", "nowhere")

    assert done.code == 1
    assert "wrong  data folder" in done.out
    assert "→ name a folder that is there" in done.out
    told = fedstill("doctor", "--data-dir", "nowhere", "--json")
    assert told.code == 1
    assert json.loads(told.out)["healthy"] is False


@pytest.mark.slow
def test_the_installed_command(tmp_path: Path, scenario_file: Path) -> None:
    command = Path(sys.executable).with_name("fedstill")

    done = subprocess.run(
        [command, "simulate", scenario_file, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["algorithm"] == "fedmd"
