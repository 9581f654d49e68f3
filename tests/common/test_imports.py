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


def test_a_client_needs_no_simulation() -> None:
    code = "import sys, fedstill.client.app, fedstill.client.store; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"fedstill.client.work", "flwr", "torch"} <= modules
    packages = {name.partition(".")[0] for name in modules}
    assert packages & {*HEAVY, "onnx", "onnxruntime", "transformers"} == set()
    assert modules & {"fedstill.server", "fedstill.simulations", "torch._dynamo"} == set()


def test_the_collector_leaves_alone_what_flower_has_made() -> None:
    code = "import gc, flwr.app; before = gc.get_freeze_count(); import fedstill.client.app; print(before)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(gc.get_freeze_count())"], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert before == 0
    assert 10_000 < after < 500_000  # without torch's


def test_predicting_needs_neither_torch_nor_flower() -> None:
    found = loaded("fedstill.client.predicting.session, fedstill.client.predicting.inputs, fedstill.common.usage")
    assert "numpy" in found
    assert not found & {"torch", "flwr", "pydantic", "safetensors", "onnxruntime", *HEAVY}


def test_cheap_modules_need_neither_torch_nor_flower() -> None:
    cheap = ", ".join(f"fedstill.common.{name}" for name in ("errors", "check", "files", "labels", "registry"))
    assert not loaded(cheap) & {"torch", "flwr", "pydantic", *HEAVY}


def test_the_core_knows_no_flower() -> None:
    assert not loaded("fedstill.common.scenario, fedstill.common.sides") & {"flwr", "grpc", *HEAVY}


def test_records_know_flower_and_nothing_heavy() -> None:
    found = loaded("fedstill.common.records")
    assert {"flwr", "torch"} <= found
    assert not found & set(HEAVY)
