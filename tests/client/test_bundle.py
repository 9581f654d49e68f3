"""What a site runs of what a server sends as "the app": configuration, and nothing else."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedstill.client.bundle import LARGEST, check_bundle
from fedstill.common.errors import MismatchError
from fedstill.server.deploy.layout import Federation
from fedstill.server.deploy.writing import init

CONFIG = '[tool.flwr.app.components]\nserverapp = "any:app"\nclientapp = "fedstill.client.app:app"\n'


def bundle(files: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's own
def test_the_app_of_a_federation_passes(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "fed", "test", "localhost", 8443, 8000, ("a",))
    init(federation)
    check_bundle(build_fab_from_disk(federation.server / "app"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pyproject.toml": CONFIG, "fedstill/client/app.py": "app = None"}, "an app with fedstill/client/app.py"),
        ({"pyproject.toml": CONFIG, "sitecustomize.py": ""}, "an app with sitecustomize.py"),
        ({"pyproject.toml": CONFIG, "../README.md": ""}, r"an app with \.\./README.md"),
        ({"pyproject.toml": CONFIG.replace("fedstill.client", "evil")}, "an app that runs 'evil.app:app'"),
        ({"pyproject.toml": "[tool.flwr.app]\n"}, "an app: cannot be read"),
        ({"pyproject.toml": "no toml"}, "an app: cannot be read"),
        ({"README.md": "nothing else"}, "an app: cannot be read"),
        ({"pyproject.toml": CONFIG, "README.md": "x" * (LARGEST + 1)}, "of more than 1 MiB"),
    ],
)
def test_anything_else_is_refused(files: Mapping[str, str], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        check_bundle(bundle(files))


def test_bytes_that_are_no_bundle() -> None:
    for content in (b"", b"PK\x03\x04", bundle({"pyproject.toml": CONFIG})[:-10]):
        with pytest.raises(MismatchError, match="cannot be read"):
            check_bundle(content)


def test_a_file_twice_hides_nothing() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pyproject.toml", CONFIG)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("pyproject.toml", CONFIG.replace("fedstill.client", "evil"))
    with pytest.raises(MismatchError, match="a file twice"):
        check_bundle(content.getvalue())


def test_the_look_stands_in_front_of_flowers_own_unpacking(tmp_path: Path) -> None:
    # Flower's names, where `main` puts the look: if they move, this fails, and no site runs without it.
    program = (
        "import importlib, sys\n"
        "from flwr.supernode.runtime import run_clientapp\n"
        "command = importlib.import_module('flwr.supernode.cli.flwr_clientapp')\n"
        "from fedstill.client import bundle\n"
        "def played():\n"
        "    run_clientapp.install_from_fab(sys.stdin.buffer.read(), skip_prompt=True)\n"
        "command.flwr_clientapp = played\n"
        "bundle.main()\n"
    )
    content = bundle({"pyproject.toml": CONFIG, "evil.py": ""})
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"MismatchError: an app with evil.py" in done.stderr
