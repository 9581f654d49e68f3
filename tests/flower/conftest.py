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
        lines = [" | ".join(row) for row in (("event", "observed", "recovery"), *rows)]
        for line in (lines[0], None, *lines[1:]):
            terminalreporter.write_line("|---|---|---|" if line is None else f"| {line} |")
