"""Trackers follow a run while it goes on; one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """Something that is told of every committed step."""

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Take note of a step.

        Args:
            record: as `StepRecord.table()` makes it.

        Raises:
            StorageError: if it cannot be written.
        """

    def close(self) -> None:
        """Write what is left, and let go of files."""
