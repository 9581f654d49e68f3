"""Sixty recordings named as the Free Spoken Digit Dataset's: a word is a pitch, a speaker how bright his tones are."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.common.seeding import numpy_rng

OPTIONS: dict[str, Any] = {"source": "recordings", "test_takes": 2, "mels": 16, "seconds": 0.3}

_RATE = 8000


def write(folder: Path) -> None:
    """Write recordings/WORD_SPEAKER_TAKE.wav: three words, two speakers, ten takes, 0.1 to 0.3 seconds each."""
    (folder / "recordings").mkdir()
    rng = numpy_rng(0, "tones")
    for word in range(3):
        for brightness, speaker in enumerate(("ann", "bob")):
            for take in range(10):
                time = np.arange(rng.integers(800, 2400)) / _RATE
                pitch = 2 * np.pi * 300 * (1 + word) * rng.uniform(0.95, 1.05)
                tone = np.sin(pitch * time) + brightness * np.sin(3 * pitch * time)
                noise = 0.02 * rng.standard_normal(len(time))
                _write_wav(folder / "recordings" / f"{word}_{speaker}_{take}.wav", 0.4 * tone + noise)


def _write_wav(path: Path, samples: NDArray[np.float64]) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(_RATE)
        stream.writeframes((samples * 32767).astype("<i2").tobytes())
