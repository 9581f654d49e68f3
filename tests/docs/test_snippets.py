"""Every block of code in the documents works: Python runs, TOML parses, commands exist."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from fedstill.client.site import parse_site
from fedstill.client.supernode import read_node
from fedstill.common.registry import ALGORITHMS
from fedstill.common.scenario import parse
from fedstill.common.sources import from_run_config, named_scenarios, override, read_table, value_of
from fedstill.simulations.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
CHEAP = ("--version", "--help", "list", "doctor")

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>\w+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page; `mark` is the word of an HTML comment right before it."""

    page: str
    line: int
    language: str
    mark: str
    text: str


def blocks() -> Iterator[Block]:
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        for found in _FENCE.finditer(page):
            line = page.count("\n", 0, found.start()) + 1
            yield Block(path.name, line, found["language"], found["mark"] or "", found["text"])


def _named(block: object) -> str:
    return f"{block.page}:{block.line}" if isinstance(block, Block) else str(block)


BLOCKS = list(blocks())
VERBATIM = {path.read_text(encoding="utf-8") for path in EXAMPLES}
PYTHON = [block for block in BLOCKS if block.language == "python"]
TOML = [block for block in BLOCKS if block.language == "toml"]
COMMANDS = [
    (block, shlex.split(line.removeprefix("$ "), comments=True))
    for block in BLOCKS
    if block.language in ("sh", "console")
    for line in block.text.splitlines()
    if block.language == "sh" or line.startswith("$ ")
]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the students inside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSTILL_STORE", str(tmp_path / "students"))
    monkeypatch.delenv("FEDSTILL_DATA", raising=False)
    return tmp_path


def test_languages_are_known() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "toml", "sh", "console", "text"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.stem))
def test_examples_run_and_say_something(path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 60
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(r"accuracy|\d\.\d", capsys.readouterr().out)
    [folder] = (elsewhere / "runs").iterdir()
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    assert steps[-1]["kind"] == "finish"
    assert not any(step["rejected"] or step["abandoned"] for step in steps)


def test_examples_stand_in_a_page_word_for_word() -> None:
    assert {block.text for block in PYTHON} >= VERBATIM


@pytest.mark.parametrize("block", [one for one in PYTHON if one.text not in VERBATIM], ids=_named)
def test_python_blocks_run(block: Block, elsewhere: Path) -> None:
    script = elsewhere / "snippet.py"
    script.write_text(block.text, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("block", TOML, ids=_named)
def test_toml_blocks_are_scenarios(block: Block, tmp_path: Path) -> None:
    table = tomllib.loads(block.text)
    if block.mark == "pyproject":
        assert table.keys() <= {"project", "tool"}
    elif block.mark == "site":
        assert parse_site(table, tmp_path).tasks
    elif block.mark == "node":
        for name in ("ca.crt", "site.crt", "site.key", "node.key", "client.toml"):
            (tmp_path / name).touch()
        (tmp_path / "node.toml").write_text(block.text)
        assert read_node(tmp_path / "node.toml").site == str(tmp_path / "client.toml")
    else:
        assert parse(table).tasks


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=lambda one: _named(one) if isinstance(one, Block) else "")
def test_commands_exist(block: Block, words: list[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *rest = words
    if program == "fedstill":
        _check_fedstill(rest)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "flwr":
        _check_flwr(rest)
    elif program == "export":
        environment = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
        assert all(f"`{word.partition('=')[0]}`" in environment for word in rest)
    elif program == "python":
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in rest[1:] if word.startswith("--"))
    else:
        pytest.fail(f"{block.page}:{block.line}: nobody checks '{program}'")


def _check_fedstill(words: list[str]) -> None:
    """The command parses; what is cheap runs; a scenario with its changes is one."""
    if words[0] in CHEAP:
        result = CliRunner().invoke(app, words)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.output.strip()
        return
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    command = group.commands[words[0]]
    values = command.make_context(words[0], words[1:]).params
    scenario = values.get("scenario")
    if scenario in named_scenarios() or values.get("changes"):
        changes = {key: value_of(text) for key, _, text in (one.partition("=") for one in values["changes"] or ())}
        # In a comparison METHOD.KEY is an option of one method.
        changes = {key: value for key, value in changes.items() if key.partition(".")[0] not in ALGORITHMS.names()}
        for name in values.get("scenarios") or [scenario or "digits"]:
            assert parse(override(read_table(name), changes)).tasks


def _check_flwr(words: list[str]) -> None:
    """`flwr run .` with a run configuration of declared keys that makes a scenario."""
    assert words[:2] == ["run", "."]
    options = dict(pairwise(words))
    assert {word for word in words if word.startswith("--")} <= {"--stream", "--run-config", "--federation-config"}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    told = options.get("--run-config", "")
    config = _pairs(told)
    assert config.keys() <= _flat(declared).keys()
    scenario = from_run_config({**_flat(declared), **config})
    nodes = _pairs(options["--federation-config"])["num-supernodes"] if "--federation-config" in options else None
    assert nodes in (None, scenario.clients.count)


def _pairs(text: str) -> dict[str, object]:
    """Flower's "key=value key=value", with TOML values."""
    found = re.findall(r'([\w.-]+)=("[^"]*"|\S+)', text)
    return {key: value_of(value) for key, value in found}


def _flat(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def test_a_misspelt_command_is_noticed() -> None:
    with pytest.raises(KeyError):
        _check_fedstill(["simulat", "digits"])
    with pytest.raises(click.UsageError):
        _check_fedstill(["simulate", "digits", "--worker-count", "2"])


def test_no_page_names_a_place_of_one_machine() -> None:
    for path in (*PAGES, *EXAMPLES, ROOT / "CHANGELOG.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(work|tmp|root|home)/", text), path.name
        assert str(Path(os.path.expanduser("~"))) + "/" not in text, path.name
