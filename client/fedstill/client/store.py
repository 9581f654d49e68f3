"""The student on disk: versioned, checksummed, replaced atomically.

A version is the round after which the student was saved. The server says from which version a client is to start, so
that a round which is played again (a crash, too few answers) starts from the same student and gives the same numbers.
Flower's own client state holds only version and digest: it is lost with the process, and silently when it is large.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedstill.common.files import write_atomically

_NAME = re.compile(r"student-(\d{6})-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True, slots=True)
class Store:
    """A folder that belongs to one client in one run.

    Attributes:
        folder: where the versions lie.
        keep: how many versions are kept: the one being written, the one that it was made from, and one more for a
            server that fell back to its last but one checkpoint.
        durable: survive a power cut (fsync); a simulation need not.
    """

    folder: Path
    keep: int = 3
    durable: bool = True

    def versions(self) -> dict[int, Path]:
        """Every version and its file, oldest first."""
        if not self.folder.is_dir():
            return {}
        found = [(match, self.folder / name) for name in os.listdir(self.folder) if (match := _NAME.fullmatch(name))]
        return {int(match[1]): path for match, path in sorted(found, key=lambda pair: pair[1].name)}

    def digest(self, version: int) -> str:
        """The digest of a version's content; "" if there is no such version."""
        path = self.versions().get(version)
        return path.stem.rsplit("-", 1)[1] if path else ""

    def load(self, version: int) -> tuple[int, dict[str, Tensor]]:
        """The student of a version, or the newest before it that is sound.

        Returns:
            The version that was found and its tensors; (0, {}) if there is none, or 0 is asked for.
        """
        from safetensors.torch import load

        usable = [(number, path) for number, path in self.versions().items() if number <= version]
        for number, path in reversed(usable):
            content = path.read_bytes()
            if _digest(content) == path.stem.rsplit("-", 1)[1]:
                return number, load(content)
        return 0, {}

    def save(self, version: int, tensors: Mapping[str, Tensor], *, base: int) -> str:
        """Write a version and drop those that no server asks for any more; returns the digest.

        Args:
            version: the round after which the student is saved.
            tensors: the student.
            base: the version that the server asked for. Those between the two were never accepted (too late, say), and
                as long as none is, the server goes on asking for this one.

        Raises:
            StorageError: if the disk refuses; the older versions are untouched.
        """
        from safetensors.torch import save

        # Copies, for safetensors refuses tensors that share memory (tied weights).
        content = save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})
        digest = _digest(content)
        path = self.folder / f"student-{version:06d}-{digest}.safetensors"
        write_atomically(path, content, durable=self.durable)
        # A version after this one belongs to a future that the server has forgotten.
        kept = [
            version,
            *sorted(number for number in self.versions() if number <= min(base, version - 1))[1 - self.keep :],
        ]
        for old in self.folder.glob("student-*.safetensors"):
            match = _NAME.fullmatch(old.name)
            if old != path and match and (int(match[1]) not in kept or int(match[1]) == version):
                old.unlink(missing_ok=True)
        return digest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
