"""Flower's SuperLink, in whose database a request waits its turn for longer.

    python -m fedstill.server.deploy.superlink ARGUMENTS OF flower-superlink

SQLite lets one request write at a time, and Flower answers 500 to whoever waits for more than five seconds. At that a
SuperNode loses the reply that it was sending, and a SuperExec ends.
"""

from __future__ import annotations

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

PATIENCE = 30
"""Seconds, below the minute after which a node counts as gone."""


def wait_longer() -> None:
    """Let databases that are opened from now on wait for their writer."""
    # Flower sets its own at each new connection, in order: the last counts.
    vars(sql_mixin)["SQLITE_PRAGMAS"] += (("busy_timeout", str(1000 * PATIENCE)),)


if __name__ == "__main__":
    wait_longer()
    flower_superlink()
