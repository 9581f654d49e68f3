"""The table of a tiny comparison, as it is stored beside this file.

Accuracies are counts of hits, and the same with other instruction sets (checked with ATEN_CPU_CAPABILITY=default and
MKL_CBWR=COMPATIBLE). Bytes may differ by 5 %, for messages are deflated; seconds are left out. Whoever changes a
method, a message or the table on purpose stores the new one:

    cd tests/golden/comparison
    fedstill compare tiny.toml --methods fedstill,fedmd --seeds 1,2 --run-dir /tmp/tiny
    cp /tmp/tiny/comparison.{md,csv,json} .
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedstill.simulations import cli

pytestmark = pytest.mark.slow

STORED = Path(__file__).with_name("comparison")

CLOCK = {"seconds", "kept"}
BYTES = {"up", "down", "to_target", "bytes", "bytes up", "bytes down", "bytes to 90 %"}
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    path = tmp_path_factory.mktemp("compared")
    words = ("compare", str(STORED / "tiny.toml"), "--methods", "fedstill,fedmd", "--seeds", "1,2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedstill", *words, "--run-dir", str(path), "--workers", "2"])
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert done.value.code in (0, None)
    return path


def differing(stored: Any, found: Any, place: str = "", *, slack: float = 1e-6) -> list[str]:
    """Where two tables differ by more than they may."""
    if isinstance(stored, Mapping):
        if not isinstance(found, Mapping) or stored.keys() != found.keys():
            return [f"{place}: {stored} and {found}"]
        lines = []
        for key in sorted(stored.keys() - CLOCK):
            allowed = _slack(stored[key]) if key in BYTES else 0 if key == "seeds" else slack
            lines += differing(stored[key], found[key], f"{place}.{key}", slack=allowed)
        return lines
    if isinstance(stored, list):
        if not isinstance(found, list) or len(stored) != len(found):
            return [f"{place}: {stored} and {found}"]
        return [
            line
            for number, (one, other) in enumerate(zip(stored, found, strict=True))
            for line in differing(one, other, f"{place}[{number}]", slack=slack)
        ]
    numbers = all(isinstance(one, float | int) and not isinstance(one, bool) for one in (stored, found))
    same = abs(stored - found) <= slack if numbers else stored == found
    return [] if same else [f"{place}: {stored} and {found}"]


def _slack(stored: Any) -> float:
    """A twentieth of a number of bytes, of the mean of several (for their spread, too), or of the least in a list."""
    if isinstance(stored, Mapping):
        return _slack(stored["mean"])
    if isinstance(stored, list):
        return min(map(_slack, stored), default=0.0)
    return 0.05 * stored if isinstance(stored, float | int) else 0.0


def test_numbers(folder: Path) -> None:
    stored, found = (json.loads((one / "comparison.json").read_text()) for one in (STORED, folder))
    assert differing(stored, found) == []


def test_comma_separated_values(folder: Path) -> None:
    def table(one: Path) -> list[dict[str, Any]]:
        rows = []
        for row in csv.DictReader((one / "comparison.csv").read_text().splitlines()):
            values = {key: _number(value) for key, value in row.items()}
            rows.append(
                {
                    key: {"mean": value, "spread": values[f"{key}_spread"], "seeds": values[f"{key}_seeds"]}
                    if f"{key}_seeds" in values
                    else value
                    for key, value in values.items()
                    if not key.endswith(("_spread", "_seeds"))
                }
            )
        return rows

    stored, found = table(STORED), table(folder)
    assert [row["method"] for row in stored] == ["fedstill", "fedmd", "local"]
    assert differing(stored, found) == []


def _number(text: str) -> float | str | None:
    if re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", text):
        return float(text)
    return text or None


def test_markdown(folder: Path) -> None:
    def table(one: Path) -> list[Any]:
        lines = (one / "comparison.md").read_text().splitlines()
        headings = _cells(lines[2])
        return [
            {name: _size(text) if name in BYTES else text for name, text in zip(headings, _cells(line), strict=True)}
            if line.startswith("| tiny")
            else line
            for line in lines
        ]

    assert differing(table(STORED), table(folder)) == []


def _cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def _size(text: str) -> float | str:
    """15.9 kB as a number."""
    number, _, unit = text.partition(" ")
    return float(number) * UNITS[unit] if unit else text


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ({"clients": 0.5}, {"clients": 0.50001}),
        ({"clients": None}, {"clients": 0.5}),
        ({"up": {"mean": 100, "spread": 3}}, {"up": {"mean": 106, "spread": 3}}),
        ({"up": {"mean": 100, "spread": 3}}, {"up": {"mean": 100, "spread": 9}}),
        ({"bytes": [100, 200]}, {"bytes": [100, 206]}),
        ({"rows": [{"runs": 2}]}, {"rows": []}),
        ({"method": "fedmd"}, {"method": "local"}),
    ],
)
def test_what_is_too_much(stored: Any, found: Any) -> None:
    assert differing(stored, stored) == []
    assert len(differing(stored, found)) == 1
