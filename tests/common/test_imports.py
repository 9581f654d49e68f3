"""What an import brings along: an edge client pays for each on every round."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("datasets", "flwr_datasets", "matplotlib", "opacus", "pandas", "PIL", "ray", "sklearn", "tensorboard")


def loaded(modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter after imports."""
    code = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_cheap_modules_need_neither_torch_nor_flower() -> None:
    cheap = ", ".join(f"fedstill.common.{name}" for name in ("errors", "check", "files", "labels", "registry"))
    assert not loaded(cheap) & {"torch", "flwr", "pydantic", *HEAVY}


def test_the_core_knows_no_flower() -> None:
    assert not loaded("fedstill.common.scenario, fedstill.common.sides") & {"flwr", "grpc", *HEAVY}


def test_records_know_flower_and_nothing_heavy() -> None:
    found = loaded("fedstill.common.records")
    assert {"flwr", "torch"} <= found
    assert not found & set(HEAVY)
