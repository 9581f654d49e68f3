"""What `fedstill doctor` looks at. Every check says what it found and, if that is not right, the cure."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedstill.common import PROTOCOL, __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LEAST_DISK = 1 << 30
"""Bytes; below it a longer run may not find room for its checkpoints."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        state: "right", "note" (works, but read it) or "wrong".
        found: what is there.
        cure: what to do; "" if nothing.
    """

    what: str
    state: Literal["right", "note", "wrong"]
    found: str
    cure: str = ""

    def table(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def examine(data_dir: Path | None) -> list[Check]:
    """Look at everything.

    Args:
        data_dir: folder of data sets, or None.
    """
    return [*_software(), *_packages(), _threads(), _data(data_dir), *_flower(), _disk(), _students()]


def _software() -> Iterator[Check]:
    yield Check("Python", "right", ".".join(str(part) for part in sys.version_info[:3]))
    yield Check("fedstill", "right", f"{__version__}, protocol {PROTOCOL}")


def _packages() -> Iterator[Check]:
    """Every requirement of the installed package: whether it is there, in the range that is asked for."""
    for wanted, extra in _requirements():
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            cure = f"pip install 'fedstill[{extra}]'" if extra else "pip install fedstill"
            used = {"simulations": "simulation and report", "ray": "'flwr run .'"}.get(extra, "everything")
            yield Check(wanted.name, "note" if extra else "wrong", f"not installed; needed for {used}", cure)
            continue
        if wanted.specifier.contains(there, prereleases=True):
            yield Check(wanted.name, "right", there)
        else:
            yield Check(
                wanted.name,
                "wrong",
                f"{there}, expected {wanted.specifier}",
                f"pip install '{wanted.name}{wanted.specifier}'",
            )


def _requirements() -> Iterator[tuple[Requirement, str]]:
    """What the package asks for, and by which of its extras; in place of "flwr[simulation]", what that extra adds."""
    from packaging.requirements import Requirement

    for line in requires("fedstill") or []:
        wanted = Requirement(line)
        extra = next((name for name in ("simulations", "ray") if _asked_by(wanted, name)), "")
        if not wanted.extras:
            yield wanted, extra
            continue
        for inner in map(Requirement, requires(wanted.name) or []):
            if any(_asked_by(inner, name) for name in wanted.extras):
                yield inner, extra


def _asked_by(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _threads() -> Check:
    import torch

    asked = os.environ.get("OMP_NUM_THREADS")
    found = f"torch would use {torch.get_num_threads()} of {os.cpu_count()} cores; fedstill sets 1 in every process"
    if asked in (None, "1"):
        return Check("threads", "right", found)
    return Check("threads", "note", f"OMP_NUM_THREADS={asked}; {found}", "export OMP_NUM_THREADS=1")


def _data(folder: Path | None) -> Check:
    if folder is None:
        return Check(
            "data folder",
            "note",
            "none named; scenarios on scikit-learn's bundled data run without",
            "name it with --data-dir or FEDSTILL_DATA",
        )
    if not folder.is_dir():
        return Check("data folder", "wrong", f"{folder} is no folder", "name a folder that is there")
    sets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not sets:
        return Check("data folder", "note", f"{folder} is empty", "put data sets there, one folder each")
    return Check("data folder", "right", f"{folder}: {', '.join(sets)}")


def _flower() -> Iterator[Check]:
    settings = {
        "FLWR_TELEMETRY_ENABLED": "Flower reports to its makers",
        "FLWR_DISABLE_UPDATE_CHECK": "Flower asks for updates at every start",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "'flwr run' installs packages each time",
    }
    for name, effect in settings.items():
        wanted = "0" if name == "FLWR_TELEMETRY_ENABLED" else "1"
        if os.environ.get(name) == wanted:
            yield Check(name, "right", wanted)
        else:
            yield Check(name, "note", f"not {wanted}: {effect}", f"export {name}={wanted}")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 1e9:.1f} GB free here"
    if free < LEAST_DISK:
        return Check("disk", "wrong", found, "make room; a run keeps its checkpoints and students in the run folder")
    return Check("disk", "right", found)


def _students() -> Check:
    from fedstill.client.app import STORE_VARIABLE, default_store

    folder = default_store()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(place, os.W_OK):
        return Check("student store", "right", f"{folder} (deployed clients keep their students there)")
    return Check(
        "student store", "wrong", f"{folder} cannot be written", f"set {STORE_VARIABLE} to a folder of your own"
    )
