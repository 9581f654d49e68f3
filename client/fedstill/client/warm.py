"""A process that has everything loaded, and becomes the ClientApp of each message by a fork.

Flower plays each message in a process of its own, `flwr-clientapp`, and most of what that costs is importing: some
three seconds of a core. Here the node starts one process that has imported all of it and waits. `shim.py`, which Flower
starts under that name, hands it arguments, environment, folder and open files over a Unix socket; it forks, and the
child is the ClientApp: still a process for each message, which shares nothing with the next one but what was imported.

If nobody waits at the socket, the shim imports by itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "flwr.supernode.cli.flwr_clientapp",
    "flwr.supernode.runtime.run_clientapp",
    "torch",
    "fedstill.client.app",
    "fedstill.client.bundle",
    "fedstill.client.store",
    "fedstill.client.work",
    "fedstill.common.learning",
    "fedstill.common.models",
)
"""What is imported before the first message."""

LARGEST = 1 << 20
"""Bytes of a request: arguments and environment."""

PATIENCE = 10.0
"""Seconds that a shim has to say what it wants."""


@dataclass(frozen=True, slots=True)
class Running:
    """A ClientApp at work.

    Attributes:
        pid: its process, the child of this one.
        handle: its pidfd, which is readable once it has ended.
        shim: the connection to who asked for it, which is readable once that one is gone.
    """

    pid: int
    handle: int
    shim: socket.socket


def start(folder: Path) -> Path:
    """Begin the process, as a child of this one, with which it ends; gives the path of its socket.

    Args:
        folder: for the socket; only the owner may enter it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / "warm.sock"
    subprocess.Popen([sys.executable, "-m", "fedstill.client.warm", str(path)], stdin=subprocess.DEVNULL)
    return path


def load() -> None:
    """Import what a ClientApp needs."""
    for module in MODULES:
        importlib.import_module(module)
    # Nothing of this is garbage; untouched, its pages stay shared with every child.
    gc.collect()
    gc.freeze()


def serve(path: Path, parent: int) -> bool:
    """Fork a ClientApp for whoever asks, until the parent has ended.

    Args:
        path: of the socket.
        parent: process id.

    Returns:
        True in a child, which is to be the ClientApp now; False in this process, at its end.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(os.fspath(path))
        listener.listen(16)
        selector.register(listener, selectors.EVENT_READ)
        try:
            selector.register(os.pidfd_open(parent), selectors.EVENT_READ, parent)
        except ProcessLookupError:
            return False
        while True:
            ended = set()
            for key, _ in selector.select():
                if key.data == parent:
                    return False
                if not isinstance(key.data, Running):
                    if _begin(selector, listener):
                        return True
                elif key.data.pid not in ended:  # it and its shim may be gone at once
                    ended.add(key.data.pid)
                    _end(selector, key.data)


def _begin(selector: selectors.BaseSelector, listener: socket.socket) -> bool:
    """Fork a ClientApp for a shim that has connected; True in the child."""
    shim, _ = listener.accept()
    shim.settimeout(PATIENCE)
    files: list[int] = []
    try:
        content, files, _, _ = socket.recv_fds(shim, LARGEST, 3)
        while not content.endswith(b"\n"):
            more = shim.recv(LARGEST)
            content += more
            if not more or len(content) > LARGEST:
                raise ValueError("half a request, or too much of one")
        wanted = json.loads(content)
        arguments, environment, folder = wanted["argv"], wanted["environ"], wanted["cwd"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"no ClientApp for a request that cannot be read: {error}", file=sys.stderr, flush=True)
        for file in files:
            os.close(file)
        shim.close()
        return False
    pid = os.fork()
    if pid == 0:
        shim.close()
        for key in selector.get_map().values():
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            elif key.fileobj is not listener:
                key.fileobj.close()  # type: ignore[attr-defined] # a socket
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = arguments
        return True
    for file in files:
        os.close(file)
    shim.setblocking(False)
    _tell(shim, pid)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended already
        _, status = os.waitpid(pid, 0)
        _tell(shim, os.waitstatus_to_exitcode(status))
        shim.close()
        return False
    running = Running(pid, handle, shim)
    selector.register(handle, selectors.EVENT_READ, running)
    selector.register(shim, selectors.EVENT_READ, running)
    return False


def _tell(shim: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it is gone
        shim.send(f"{number}\n".encode())


def _end(selector: selectors.BaseSelector, running: Running) -> None:
    """Tell the shim how its ClientApp has ended; a ClientApp whose shim is gone is killed."""
    pid, status = os.waitpid(running.pid, os.WNOHANG)
    if pid == 0:
        os.kill(running.pid, signal.SIGKILL)
        _, status = os.waitpid(running.pid, 0)
    selector.unregister(running.handle)
    selector.unregister(running.shim)
    os.close(running.handle)
    _tell(running.shim, os.waitstatus_to_exitcode(status))
    running.shim.close()


def main() -> None:
    """Import, wait, and be a ClientApp in every child."""
    parent = os.getppid()
    load()
    if serve(Path(sys.argv[1]), parent):
        from fedstill.client.bundle import main as be_client_app

        be_client_app()


if __name__ == "__main__":
    main()
