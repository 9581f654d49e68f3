"""Build the wheel, look into it, install it into an environment of its own and run it from outside the checkout.

    python tests/wheel/check_wheel.py

The new environment sees the packages that are installed beside this interpreter, but not the editable fedstill: nothing
is downloaded but the build backend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("common", "server", "client", "simulations")


def main() -> None:
    """Do all of it; an AssertionError or a failed command says what is wrong."""
    with tempfile.TemporaryDirectory(prefix="fedstill-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        names = content(wheel)
        check_names(names)
        python = environment(folder / "env", wheel)
        smoke(python, folder / "elsewhere")
        print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size:,} bytes, installed and run")


def build(folder: Path) -> Path:
    """The wheel of the checkout."""
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)])
    (wheel,) = folder.glob("*.whl")
    return wheel


def content(wheel: Path) -> list[str]:
    """Every file in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None, "a damaged file"
        return archive.namelist()


def check_names(names: list[str]) -> None:
    """One top-level name, no test, no cache; everything that is no Python but has to be there."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    own = {"fedstill", f"fedstill-{version}.dist-info"}
    assert {name.split("/")[0] for name in names} == own, sorted(names)
    assert "fedstill/__init__.py" not in names, "fedstill is a namespace package"
    for part in PARTS:
        # Everything of the source is there, and nothing else.
        source = ROOT / part / "fedstill" / part
        wanted = {
            f"fedstill/{part}/{path.relative_to(source).as_posix()}"
            for path in source.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert {name for name in names if name.startswith(f"fedstill/{part}/")} == wanted
        assert f"fedstill/{part}/py.typed" in names, f"{part} without py.typed"
    assert "fedstill/simulations/scenarios/digits.toml" in names
    assert "fedstill/server/report/page.html" in names
    assert "fedstill/simulations/compare/compare.html" in names
    assert f"fedstill-{version}.dist-info/entry_points.txt" in names
    assert any(name.endswith("LICENSE") for name in names)


def environment(folder: Path, wheel: Path) -> Path:
    """An interpreter that has the wheel, and all packages of this one but the editable fedstill."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # A folder that a .pth file names is searched for packages, but the .pth files in it (the editable's) are not read.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel])
    return python


def smoke(python: Path, folder: Path) -> None:
    """The command and the library, from another folder."""
    folder.mkdir()
    command = python.with_name("fedstill")
    where = (
        "import fedstill.common, fedstill.simulations.cli as cli; print(fedstill.common.__file__); print(cli.__file__)"
    )
    for path in output([python, "-c", where], cwd=folder).splitlines():
        assert Path(path).is_relative_to(python.parents[1]), f"{path} is not of the wheel"
    assert output([command, "--version"], cwd=folder).startswith("fedstill ")
    listed = json.loads(output([command, "list", "--json"], cwd=folder))
    assert all(listed[kind] for kind in ("algorithms", "tasks", "models", "teachers", "codecs", "scenarios")), listed
    told = output([command, "simulate", "digits", "--set", "rounds.count=1", "--run-dir", "run", "--json"], cwd=folder)
    assert json.loads(told)["rounds"] == 1, told
    assert (folder / "run" / "report.html").stat().st_size > 10_000


def run(command: list[str | Path]) -> None:
    """Run a command; its output is shown only if it fails."""
    output(command)


def output(command: list[str | Path], *, cwd: Path | None = None) -> str:
    """What a command prints.

    Raises:
        SystemExit: if it fails, with all that it said.
    """
    done = subprocess.run(command, cwd=cwd, env=_clean(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _clean(variables: Mapping[str, str]) -> dict[str, str]:
    without = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "FEDSTILL_DATA", "FEDSTILL_STORE")
    return {name: value for name, value in variables.items() if name not in without} | {"OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
