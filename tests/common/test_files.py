"""Atomic writing under a disk that refuses."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.errors import StorageError
from fedstill.common.files import write_atomically


def refuse(number: int) -> Any:
    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refusing


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file"
    for content in (b"one", b"", b"two" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    write_atomically(path, b"three", durable=False)
    assert path.read_bytes() == b"three"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "builtins.open"])
@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "make room and resume"), (errno.EDQUOT, "make room"), (errno.EIO, "check the folder")],
)
def test_a_refusal_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, cure: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse(number))
        with pytest.raises(StorageError, match=rf"file: cannot be written: .*\({cure}") as caught:
            write_atomically(path, b"new")
    assert caught.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(StorageError, match="File too large"):
            write_atomically(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(StorageError, match="check the folder"):
        write_atomically(tmp_path / "file" / "below", b"new")
    with pytest.raises(StorageError, match="check the folder"):
        write_atomically(tmp_path, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_an_interruption_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []
