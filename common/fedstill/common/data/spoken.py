"""Recordings of single words, whose names say which word, who speaks and which take it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fedstill.common.data.archives import archive_in, open_files
from fedstill.common.data.audio import SUFFIXES, read_wav
from fedstill.common.data.content import find_task_folder
from fedstill.common.data.spectrogram import log_mel
from fedstill.common.errors import ConfigError, DataError

FSDD = r"(?P<word>[^/_]+)_(?P<speaker>[^/_]+)_(?P<take>\d+)$"
"""Names of the Free Spoken Digit Dataset: 7_jackson_32.wav."""

_PARTS = {"word", "speaker", "take"}


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Recordings with what their names tell, in the order of the names.

    Attributes:
        spectra: (N, 1, mels, frames) bytes; see `log_mel`.
        words, speakers, takes: of each recording.
        rate: samples a second, of all of them.
    """

    spectra: Tensor
    words: tuple[str, ...]
    speakers: tuple[str, ...]
    takes: tuple[int, ...]
    rate: int


@lru_cache(maxsize=2)
def read_spoken(
    folder: Path | None, source: str, *, pattern: str, mels: int, window: float, hop: float, seconds: float
) -> Spoken:
    """The recordings of a source, kept for the next task that asks something else of them.

    Args:
        folder: the data folder, or None.
        source: a folder or archive of WAV files, or a folder with one archive.
        pattern: found in each path without its suffix; has the groups word, speaker and take.
        mels, window, hop, seconds: see `log_mel`.

    Raises:
        DataError: if a file is missing or damaged, or its name does not match.
    """
    place = archive_in(find_task_folder(folder, source))
    with open_files(place, SUFFIXES, noun="recordings") as store:
        told = [_told(name, pattern, place) for name in store.names]
        recordings = [read_wav(store.read(name), f"{place}: {name}") for name in store.names]
    words, speakers, takes = zip(*told, strict=True)
    spectra = torch.from_numpy(log_mel(recordings, mels=mels, window=window, hop=hop, seconds=seconds))
    return Spoken(spectra, words, speakers, tuple(map(int, takes)), recordings[0].rate)


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that is no regular expression, or without its groups.

    Raises:
        ConfigError: if it is.
    """
    try:
        lacking = _PARTS - re.compile(pattern).groupindex.keys()
    except re.error as error:
        raise ConfigError(f"pattern='{pattern}'", f"is no regular expression: {error}") from None
    if lacking:
        raise ConfigError(
            f"pattern='{pattern}'", f"expected a group (?P<{min(lacking)}>…)", "as in the default pattern"
        )


def _told(name: str, pattern: str, place: Path) -> tuple[str, str, str]:
    match = re.search(pattern, name.rpartition(".")[0])
    if match is None or not (match["take"] or "").isdecimal() or not match["word"] or not match["speaker"]:
        raise DataError(
            f"{place}: {name}", "expected a name of word, speaker and number of the take", "set the task's 'pattern'"
        )
    return match["word"], match["speaker"], match["take"]
