"""Flower's SuperExec, which lets a run end at the border of its round before it ends itself.

    python -m fedstill.server.deploy.superexec ARGUMENTS OF flower-superexec

For whatever ends a service by one SIGTERM to it: systemd, a container engine. By itself `flower-superexec` takes the
ServerApp along at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fedstill.server.deploy.supervisor import LOOK, Identity, began, children


def main(arguments: Sequence[str]) -> int:
    """Run a SuperExec until it ends or SIGTERM comes; gives its exit code."""
    programs = Path(sys.executable).parent
    # It looks for the ServerApp's program in PATH, where a virtual environment under systemd is not.
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    superexec = subprocess.Popen([str(programs / "flower-superexec"), *arguments], env={**os.environ, "PATH": path})
    while superexec.poll() is None and not asked:
        time.sleep(LOOK)
    told: set[Identity] = set()
    while superexec.poll() is None and (left := _started(superexec.pid)):
        for one in left - told:
            one.signal(signal.SIGTERM)
        told |= left
        time.sleep(LOOK)
    superexec.terminate()
    return superexec.wait()


def _started(pid: int) -> set[Identity]:
    return {one for child in children(pid) if (one := Identity(child, began(child))).alive()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
