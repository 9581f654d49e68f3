"""What Flower starts as `flwr-clientapp`: a standalone copy of this file, which has a process that is warm do the work.

It imports next to nothing, for it is started for each message. See `warm.py`.
"""

import json
import os
import signal
import socket
import sys

WARM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "warm.sock")
COLD = "import sys; sys.argv[0] = 'flwr-clientapp'; from fedstill.client.bundle import main; main()"


def warm(connection: socket.socket) -> int | None:
    """Have the work done over there; gives its exit code, or None if nobody has begun it."""
    signals = (signal.SIGTERM, signal.SIGINT)
    # They wait until it is known whose they are.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    wanted = {"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd()}
    content = json.dumps(wanted).encode() + b"\n"
    told = connection.makefile()
    try:
        sent = socket.send_fds(connection, [content], [0, 1, 2])
        connection.sendall(content[sent:])
        pid = int(told.readline() or 0)
    except OSError:
        pid = 0
    if not pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return None
    with told:
        for number in signals:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        code = int(told.readline() or 1)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Connect, or do without."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(WARM)
    except OSError:
        code = None
    else:
        code = warm(connection)
    if code is None:
        os.execv(sys.executable, [sys.executable, "-c", COLD, *sys.argv[1:]])
    sys.exit(code)


if __name__ == "__main__":
    main()
