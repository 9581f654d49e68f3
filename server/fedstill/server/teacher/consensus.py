"""The consensus itself teaches: no model on the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedstill.common.knowledge import SoftLabels
from fedstill.common.sides import Server


@dataclass(frozen=True, slots=True)
class Consensus:
    """The aggregated soft labels go back as they are (no model)."""

    name: ClassVar[str] = "consensus"
    paper: ClassVar[str] = ""
    has_model: ClassVar[bool] = False

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """Nothing before the first answers."""
        return {}

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """The consensus."""
        return consensus
