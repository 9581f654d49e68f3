"""What `fedstill doctor` looks at. Every check says what it found and, if that is not right, the cure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedstill.common.checkup import Check, flower_settings, packages, software

LEAST_DISK = 1 << 30
"""Bytes; below it a longer run may not find room for its checkpoints."""


def examine(data_dir: Path | None) -> list[Check]:
    """Look at everything.

    Args:
        data_dir: folder of data sets, or None.
    """
    return [*software(), *packages(), _threads(), _data(data_dir), *flower_settings(), _disk(), _students()]


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


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 1e9:.1f} GB free here"
    if free < LEAST_DISK:
        return Check("disk", "wrong", found, "make room; a run keeps its checkpoints and students in the run folder")
    return Check("disk", "right", found)


def _students() -> Check:
    from fedstill.client.node import STORE_VARIABLE, default_store

    folder = default_store()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(place, os.W_OK):
        return Check("student store", "right", f"{folder} (deployed clients keep their students there)")
    return Check(
        "student store", "wrong", f"{folder} cannot be written", f"set {STORE_VARIABLE} to a folder of your own"
    )
