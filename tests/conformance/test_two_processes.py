"""Two processes that share nothing agree on every bit of a coded message, in every codec that is discovered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.registry import CODECS

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("dialogue.py")

SIDES = {
    "one": {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
    "other": {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"},
}


def both(*arguments: tuple[str, ...]) -> None:
    """Run the program in two processes at once, each with its own order of sets and its own number of threads."""
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), *one], env=os.environ | changes, stderr=subprocess.PIPE)
        for one, changes in zip(arguments, SIDES.values(), strict=True)
    ]
    try:
        said = [process.communicate(timeout=240)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], said


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each process wrote, and what it read of what the other wrote; and of its own."""
    folder = tmp_path_factory.mktemp("two")
    one, other = (str(folder / side) for side in SIDES)
    both(("write", one), ("write", other))
    both(("read", other, f"{one}-read"), ("read", one, f"{other}-read"))
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def test_they_write_the_same_bytes(told: dict[str, dict[str, Any]]) -> None:
    one, other = told["one"], told["other"]
    assert one.keys() == other.keys()
    assert {key.split(",")[0] for key in one} == set(CODECS.names())
    assert [key for key in one if one[key] != other[key]] == []


def test_each_reads_the_other(told: dict[str, dict[str, Any]]) -> None:
    one, other = told["one-read"], told["other-read"]
    assert one.keys() == told["one"].keys()
    assert [key for key in one if one[key] != other[key]] == []


def test_context_is_made_use_of_and_changes_nothing_that_is_read(told: dict[str, dict[str, Any]]) -> None:
    pairs = [(key, key.replace("in context", "each by itself")) for key in told["one"] if "in context" in key]
    assert {key.split(",")[0] for key, _ in pairs} == {
        name for name in CODECS.names() if getattr(CODECS.get(name), "uses_context", False)
    }
    assert {told["one-read"][key] == told["one-read"][plain] for key, plain in pairs} == {True}
    shorter = [key for key, plain in pairs if len(told["one"][key]) < len(told["one"][plain])]
    assert {key for key in shorter if "few classes" in key and "answer" in key and "round 1" not in key} == {
        key for key, _ in pairs if "few classes" in key and "answer" in key and "round 1" not in key
    }
