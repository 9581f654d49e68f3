"""What a doctor looks at on any machine. Every check says what it found and, if that is not right, the cure."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import TYPE_CHECKING, Literal

from fedstill.common import PROTOCOL, __version__
from fedstill.common.environment import FLOWER

if TYPE_CHECKING:
    from packaging.requirements import Requirement


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


_USES = {"simulations": "simulation and report", "ray": "'flwr run .'", "": "everything"}


def software() -> Iterator[Check]:
    """Versions of Python and of this package."""
    yield Check("Python", "right", ".".join(str(part) for part in sys.version_info[:3]))
    yield Check("fedstill", "right", f"{__version__}, protocol {PROTOCOL}")


def packages(extras: Collection[str] | None = None) -> Iterator[Check]:
    """Every requirement of the installed package: whether it is there, in the range that is asked for.

    Args:
        extras: of which packages are looked at, beside those that everybody needs; None for all.
    """
    for wanted, extra in _requirements():
        if extra and extras is not None and extra not in extras:
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            cure = f"pip install 'fedstill[{extra}]'" if extra else "pip install fedstill"
            used = _USES.get(extra, f"what the extra '{extra}' is for")
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

    extras: list[str] = metadata("fedstill").get_all("Provides-Extra") or []
    for line in requires("fedstill") or []:
        wanted = Requirement(line)
        extra = next((name for name in extras if _asked_by(wanted, name)), "")
        if not wanted.extras:
            yield wanted, extra
            continue
        for inner in map(Requirement, requires(wanted.name) or []):
            if any(_asked_by(inner, name) for name in wanted.extras):
                yield inner, extra


def _asked_by(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def flower_settings() -> Iterator[Check]:
    """Environment variables of Flower that are better set."""
    settings = {
        "FLWR_TELEMETRY_ENABLED": "Flower reports to its makers",
        "FLWR_DISABLE_UPDATE_CHECK": "Flower asks for updates at every start",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "'flwr run' installs packages each time",
    }
    for name, effect in settings.items():
        wanted = FLOWER[name]
        if os.environ.get(name) == wanted:
            yield Check(name, "right", wanted)
        else:
            yield Check(name, "note", f"not {wanted}: {effect}", f"export {name}={wanted}")
