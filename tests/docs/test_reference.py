"""The reference pages say what the code says: keys with types and defaults, commands, errors, lines of a run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest
import typer

from fedstill.client.policy import Policy
from fedstill.client.site import Resources, Site, SiteTask
from fedstill.common import errors
from fedstill.common.learning import Training
from fedstill.common.registry import ALGORITHMS, CODECS, MODELS, QUERIES, TASKS, Registry
from fedstill.common.scenario import Clients, PartitionPlan, ProxyPlan, Rounds, Scenario, TaskPlan
from fedstill.common.sources import named_scenarios
from fedstill.server.admission import Rejection
from fedstill.server.record import Attempt, StepRecord, Traffic
from fedstill.server.teacher import TEACHERS
from fedstill.simulations.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SECTIONS = (Scenario, Clients, Rounds, Training, TaskPlan, ProxyPlan, PartitionPlan, Site, SiteTask, Policy, Resources)

_WORDS: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}
_MARK = re.compile(r"<!-- keys: (?P<path>[\w.]+) -->\n(?P<table>(?:\|.*\n)+)")


def plugins(registry: Registry) -> dict[str, type[Any]]:
    """Those that come with fedstill."""
    return {name: kind for name, kind in registry.all().items() if kind.__module__.startswith("fedstill.")}


def with_options() -> Iterator[type[Any]]:
    yield from SECTIONS
    for registry in (ALGORITHMS, TEACHERS, TASKS, CODECS):
        yield from (kind for kind in plugins(registry).values() if fields(kind))


def type_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {type_words(get_args(kind)[0]).replace(' or ', 's or ')}s"
    if get_origin(kind) is UnionType:
        return " or ".join(sorted(type_words(part) for part in get_args(kind) if part is not type(None)))
    return _WORDS.get(kind, "table")


def default_words(one: Field[Any]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is MISSING:
        return "required"
    if value is None:
        return "none"
    return "see below" if is_dataclass(value) else f"`{json.dumps(value)}`"


def key_rows(kind: type[Any]) -> list[tuple[str, str, str]]:
    hints = get_type_hints(kind)
    rows = [
        (f"`{one.name.replace('_', '-')}`", type_words(hints[one.name]), default_words(one))
        for one in fields(kind)
        if (kind, one.name) not in ((TaskPlan, "task"), (SiteTask, "reader"))
    ]
    return [*rows, ("any option of the kind", "as there", "that of the pack")] if kind is SiteTask else rows


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table without its head."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]


def table_below(page: str, heading: str) -> list[list[str]]:
    """The first table after a heading."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(?:(?!#)(?!\|).*\n)*((?:\|.*\n)+)", page + "\n", re.MULTILINE)
    assert found, f"no table below '{heading}'"
    return cells(found[1])


def marked() -> dict[str, str]:
    return {
        match["path"]: match["table"]
        for page in sorted(DOCS.glob("*.md"))
        for match in _MARK.finditer(page.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("kind", list(with_options()), ids=lambda kind: str(kind.__name__))
def test_keys_types_and_defaults(kind: type[Any]) -> None:
    path = f"{kind.__module__}.{kind.__name__}"
    tables = marked()
    assert path in tables, f"no page has a table after <!-- keys: {path} -->"
    rows = cells(tables[path])
    assert [tuple(row[:3]) for row in rows] == key_rows(kind)
    assert all(len(row) == 4 and row[3] for row in rows), "every key has a meaning"


def test_no_table_of_a_class_that_is_gone() -> None:
    known = {f"{kind.__module__}.{kind.__name__}" for kind in with_options()}
    assert marked().keys() == known


@pytest.mark.parametrize(
    ("page", "heading", "registry"),
    [
        ("algorithms.md", "The methods", ALGORITHMS),
        ("algorithms.md", "Teachers", TEACHERS),
        ("data.md", "Tasks", TASKS),
        ("scenarios.md", "Codecs", CODECS),
        ("scenarios.md", "Query strategies", QUERIES),
    ],
)
def test_every_plugin_has_its_row(page: str, heading: str, registry: Registry) -> None:
    rows = table_below((DOCS / page).read_text(encoding="utf-8"), heading)
    assert {re.sub(r"\[?`([\w-]+)`.*", r"\1", row[0]) for row in rows} == plugins(registry).keys()


def test_papers_of_the_methods() -> None:
    page = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    for registry in (ALGORITHMS, TEACHERS):
        for name, kind in plugins(registry).items():
            if kind.paper:
                assert kind.paper.rsplit(" ", 1)[1] in page, f"{name}: no link to its paper"


def test_models_with_their_sizes() -> None:
    rows = table_below((DOCS / "data.md").read_text(encoding="utf-8"), "Models")
    listed = {row[0].strip("`"): row for row in rows}
    known = {f"{name}-{size}": kind for name, kind in plugins(MODELS).items() for size in kind.sizes}
    assert listed.keys() == known.keys()
    for name, kind in known.items():
        assert listed[name][1] == ", ".join(sorted(kind.modalities))
        assert listed[name][2] == kind.sizes[name.rpartition("-")[2]]


def test_named_scenarios() -> None:
    rows = table_below((DOCS / "scenarios.md").read_text(encoding="utf-8"), "Named scenarios")
    assert {row[0].strip("`") for row in rows} == named_scenarios().keys()


def test_readme_lists_what_is_in_it() -> None:
    rows = table_below((ROOT / "README.md").read_text(encoding="utf-8"), "What is in it")
    contents = {re.sub(r"\[(.*)\].*", r"\1", row[0]): set(re.findall(r"`([\w-]+)`", row[1])) for row in rows}
    registries = {
        "Algorithms": ALGORITHMS,
        "Teachers": TEACHERS,
        "Tasks": TASKS,
        "Models": MODELS,
        "Codecs": CODECS,
        "Query strategies": QUERIES,
    }
    assert contents == {title: set(plugins(registry)) for title, registry in registries.items()}


# Commands ------------------------------------------------------------------------------------------------------------


def _commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inner = command.commands.items() if isinstance(command, click.Group) else ()
        found |= {f"{name} {other}": one for other, one in inner} or {name: command}
    return found


@pytest.mark.parametrize("name", list(_commands()))
def test_options_of_commands(name: str) -> None:
    command = _commands()[name]
    documented = table_below((DOCS / "command.md").read_text(encoding="utf-8"), f"fedstill {name}")
    known = {
        one.opts[0] if isinstance(one, click.Option) else str(one.name).upper()
        for one in command.params
        if one.name != "help"
    }
    assert {re.split(r"[` ]", row[0])[1] for row in documented} == known


def test_exit_codes() -> None:
    rows = table_below((DOCS / "errors.md").read_text(encoding="utf-8"), "Exit codes")
    group = typer.main.get_command(app)
    told = {int(number) for number in re.findall(r"(\d+) [a-z]", str(group.epilog))}
    assert {int(row[0]) for row in rows} == told
    assert {kind.exit_code for kind in _errors().values()} <= told


# Errors --------------------------------------------------------------------------------------------------------------


def _errors() -> Mapping[str, type[errors.FedstillError]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.FedstillError)
    }


def test_tree_of_exceptions() -> None:
    rows = table_below((DOCS / "errors.md").read_text(encoding="utf-8"), "The tree")
    listed = {row[0].strip("`"): (row[1].strip("`"), int(row[2])) for row in rows}
    assert listed == {name: (kind.__bases__[0].__name__, kind.exit_code) for name, kind in _errors().items()}


def test_rejection_reasons() -> None:
    rows = table_below((DOCS / "errors.md").read_text(encoding="utf-8"), "Why an answer does not count")
    assert [row[0].strip("`") for row in rows] == [str(reason) for reason in errors.Reason]


# The run folder ------------------------------------------------------------------------------------------------------


def test_keys_of_a_line_of_rounds() -> None:
    rejection = Rejection("a", errors.Reason.NO_ANSWER, "none within 1 s")
    attempt = Attempt(1, ("a", "b"), ("b",), [rejection])
    record = StepRecord(
        kind="round",
        step=1,
        attempt=attempt,
        abandoned=[attempt],
        traffic=Traffic({"b": 1}, {"a": 1, "b": 1}),
        seconds=1.0,
        server={"digits": {"accuracy": 0.5}},
        clients={"digits": {"b": {"trained.accuracy": 0.5}}},
    ).table()
    names = {"a": "CLIENT", "b": "CLIENT", "digits": "TASK", "accuracy": "MEASURE", "trained.accuracy": "MEASURE"}
    rows = table_below((DOCS / "run-folder.md").read_text(encoding="utf-8"), "A line of rounds.jsonl")
    assert {row[0].strip("`") for row in rows} == set(_paths(record, names))


def _paths(value: object, names: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """The key path of everything that is no mapping; `[]` stands for the items of a list of mappings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, names, f"{prefix}.{names.get(key, key)}" if prefix else names.get(key, key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        yield from _paths(value[0], names, f"{prefix}[]")
    elif prefix:
        yield prefix


# The environment -----------------------------------------------------------------------------------------------------


def test_environment_variables() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for part in ("common", "server", "client", "simulations")
        for path in (ROOT / part).rglob("*.py")
    ]
    used = {name for text in sources for name in re.findall(r'"((?:FEDSTILL|FLWR|OMP|MALLOC)_[A-Z_]+)"', text)}
    rows = table_below((DOCS / "environment.md").read_text(encoding="utf-8"), "Environment")
    assert {row[0].strip("`") for row in rows} == used


def test_classes_named_in_tables_can_be_imported() -> None:
    for path in marked():
        module, _, name = path.rpartition(".")
        assert is_dataclass(getattr(importlib.import_module(module), name))
