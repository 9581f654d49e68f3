from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from fedstill.common.data.archives import archive_in, open_files
from fedstill.common.errors import DataError

FILES = {"b/two.wav": b"22", "a/one.WAV": b"1", "notes.txt": b"no"}


def tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return packed.getvalue()


def written(place: Path, content: bytes) -> Path:
    place.write_bytes(content)
    return place


def unpacked(place: Path) -> Path:
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.xz", "zip"])
def test_the_same_files_however_they_are_kept(tmp_path: Path, kind: str) -> None:
    source = {
        "folder": lambda: unpacked(tmp_path / "all"),
        # Told by their content, whatever the name says.
        "tar": lambda: written(tmp_path / "archive", tar()),
        "tar.xz": lambda: written(tmp_path / "archive", lzma.compress(tar())),
        "zip": lambda: written(tmp_path / "archive", zipped()),
    }[kind]()
    with open_files(source, (".wav",)) as store:
        assert store.names == ("a/one.WAV", "b/two.wav")
        assert [store.read(name) for name in store.names] == [b"1", b"22"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"neither", "is no whole tar archive"),
        (lzma.compress(tar())[:-9], "is no whole tar archive"),
        (zipped()[:-9], "is no whole zip archive"),
        (zipped().replace(b"22", b"23", 1), r"b/two\.wav: cannot be unpacked: Bad CRC"),
        (tar()[:513], "is no whole tar archive"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, message: str) -> None:
    with (
        pytest.raises(DataError, match=message),
        open_files(written(tmp_path / "archive", content), (".wav",)) as store,
    ):
        store.read("b/two.wav")


def test_nothing_of_that_kind(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"expected recordings \(their names have to end in \.flac"),
        open_files(unpacked(tmp_path), (".flac",), noun="recordings"),
    ):
        pass


def test_a_folder_with_one_archive(tmp_path: Path) -> None:
    assert archive_in(tmp_path) == tmp_path
    only = written(tmp_path / "all.ZIP", zipped())
    assert archive_in(tmp_path) == only
    written(tmp_path / "more.tar.xz", b"")
    assert archive_in(tmp_path) == tmp_path
    assert archive_in(only) == only
