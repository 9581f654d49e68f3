"""What was observed of faults, shown as a table when the tests are done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

ROWS = pytest.StashKey[list[tuple[str, str, str]]]()


@pytest.fixture
def observed(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Notes a row: the event, what was observed, and seconds from where to where."""

    def note(event: str, what: str, recovered: str) -> None:
        request.config.stash.setdefault(ROWS, []).append((event, what, recovered))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the rows, as docs/deploy.md has them."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("faults")
        for row in (("event", "observed", "recovery"), ("---",) * 3, *rows):
            terminalreporter.write_line(f"| {' | '.join(row)} |".replace("| --- |", "|---|").replace("|--- |", "|---|"))
