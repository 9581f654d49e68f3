"""Inputs of an exported student: NumPy files, or files of the task's own kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedstill.client.predicting.session import Student
from fedstill.common.data.preparation import Array
from fedstill.common.errors import DataError, UnsupportedError

ARRAYS = (".npy", ".npz")


def read_inputs(student: Student, paths: Sequence[Path], *, prepared: bool = False) -> tuple[list[str], Array]:
    """A name for each row, and raw inputs (N, …); prepared ones if the files hold such.

    Args:
        student: says what files it reads.
        paths: all NumPy files, or all of the task's kind.
        prepared: whether arrays hold prepared inputs.

    Raises:
        DataError: if a file is missing, damaged or of another form.
        UnsupportedError: for files that the student does not read.
    """
    arrays = [path.suffix.lower() in ARRAYS for path in paths]
    if all(arrays):
        parts = [read_array_file(path) for path in paths]
        names = [f"{path}:{row}" for path, part in zip(paths, parts, strict=True) for row in range(1, len(part) + 1)]
        return names, _joined(parts)
    reader = student.card.reader
    if any(arrays) or prepared or reader is None:
        accepted = "" if reader is None or prepared else f", or {reader.accepts}"
        raise UnsupportedError(
            f"input {paths[arrays.index(False)]}",
            f"expected .npy or .npz files{accepted}",
            "give files of one kind",
        )
    return reader.read(paths, student.folder)


def read_array_file(path: Path) -> Array:
    """The only array of a .npy or .npz file, or the one called "inputs".

    Raises:
        DataError: if there is no such array, or the file is damaged.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            array: Array = found
        else:
            with found:
                name = "inputs" if "inputs" in found.files else found.files[0] if len(found.files) == 1 else ""
                if not name:
                    raise DataError(
                        f"{path} with {', '.join(found.files)}", "expected one array, or one called 'inputs'"
                    )
                array = found[name]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}", f"cannot be read: {error}", "write it with numpy.save or numpy.savez") from None
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "biuf":
        raise DataError(
            f"{path} of shape {array.shape} and type {array.dtype}", "expected numbers (N, …), one row for each sample"
        )
    return array


def _joined(parts: Sequence[Array]) -> Array:
    for part in parts:
        if part.shape[1:] != parts[0].shape[1:]:
            raise DataError(f"arrays of shapes {parts[0].shape} and {part.shape}", "expected the same but for N")
    return np.concatenate(parts)
