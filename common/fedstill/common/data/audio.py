"""Recordings from WAV files: uncompressed samples of 8, 16 or 32 bits, as the standard library reads them."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedstill.common.errors import DataError

SUFFIXES = (".wav",)

_FORMATS: dict[int, tuple[str, float, float]] = {
    1: ("u1", 128.0, 2.0**7),
    2: ("<i2", 0.0, 2.0**15),
    4: ("<i4", 0.0, 2.0**31),
}
"""NumPy type, silence and full scale of a sample, by its bytes; one byte is unsigned."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Sound of one channel.

    Attributes:
        where: its file, for messages.
        samples: (T,) float32 from -1 to 1.
        rate: samples a second.
    """

    where: str
    samples: NDArray[np.float32]
    rate: int


def read_wav(content: bytes, where: str) -> Recording:
    """A recording from a WAV file's content; several channels become their mean.

    Args:
        content: the whole file.
        where: its name, for messages.

    Raises:
        DataError: if it is damaged, empty, packed, or of another number of bits.
    """
    try:
        with wave.open(io.BytesIO(content)) as stream:
            form = stream.getparams()
            data = stream.readframes(form.nframes)
    except (wave.Error, EOFError) as error:
        raise DataError(
            f"{where}", f"is no uncompressed WAV: {str(error) or 'it ends too early'}", "convert it, or fetch it again"
        ) from None
    if form.sampwidth not in _FORMATS:
        raise DataError(f"{where} of {8 * form.sampwidth} bits", "expected 8, 16 or 32 bits a sample", "convert it")
    if not form.nframes or form.framerate < 1:
        raise DataError(f"{where} of {form.nframes} samples", "expected at least one", "remove it")
    if len(data) != form.nframes * form.nchannels * form.sampwidth:
        raise DataError(f"{where} of {len(data)} bytes", "ends before its last sample", "fetch it again")
    kind, silence, scale = _FORMATS[form.sampwidth]
    channels = np.frombuffer(data, dtype=kind).reshape(-1, form.nchannels)
    return Recording(where, ((channels.mean(1) - silence) / scale).astype(np.float32), form.framerate)
