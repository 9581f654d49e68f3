"""Flower's SuperLink as fedstill starts it: its databases wait for their writer, whatever Flower sets."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from flwr.supercore import sql_mixin
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import text

from fedstill.server.deploy import superlink


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
def test_a_database_waits_for_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pragmas = vars(sql_mixin)["SQLITE_PRAGMAS"]
    monkeypatch.setitem(vars(sql_mixin), "SQLITE_PRAGMAS", (*pragmas, ("busy_timeout", "50")))
    superlink.wait_longer()
    store = SqlObjectStore(str(tmp_path / "state.db"))
    store.initialize()
    with store.session() as session:
        assert session.scalar(text("PRAGMA busy_timeout")) == 1000 * superlink.PATIENCE

    writer = sqlite3.connect(tmp_path / "state.db", check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    free = threading.Timer(0.5, writer.rollback)  # ten times as long as before
    free.start()
    store.delete("0" * 64)
    free.join()
    writer.close()
