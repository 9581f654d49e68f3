"""The first page that a newcomer reads: its code is the file, and what it prints is what the page says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from fedstill.common.learning import one_thread
from fedstill.simulations import minimal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "minimal.md"


def table(text: str) -> list[list[float]]:
    return [[float(cell) for cell in re.findall(r"([\d.]+)%", line)] for line in text.splitlines() if "%" in line]


def test_the_page_holds_the_file_word_for_word() -> None:
    source = inspect.getsource(minimal)
    assert f"```python\n{source}```" in PAGE.read_text(encoding="utf-8")
    assert source.count("\n") <= 95


def test_it_prints_what_the_page_says_and_distillation_helps(capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        minimal.main()
    printed = capsys.readouterr().out
    alone, cross, both = table(printed)
    [told] = [block for block in re.findall(r"```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if "%" in block]
    # Another processor may round otherwise.
    for line, wanted in zip((alone, cross, both), table(told), strict=True):
        assert line == pytest.approx(wanted, abs=1.0)
    assert cross[0] > alone[0]
    assert both[0] > alone[0] + 5
    assert alone[1] < 25
    assert min(cross[1], both[1]) > 90
