"""Log-mel spectrograms of recordings as bytes, without torch.

Mel scale and triangular filters as in HTK (Young et al. 2006, The HTK Book, section 5.4); levels are relative to the
loudest one of a recording and cut far below it, as in Whisper (Radford et al. 2022, https://arxiv.org/abs/2212.04356,
with 80 dB): how near the microphone was tells nothing. Quarter decibels as bytes, from double precision, are the same
on every machine, which the last bits of a Fourier transform are not: both sides compare the digest of the proxy set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedstill.common.data.audio import Recording
from fedstill.common.data.preparation import PADDING
from fedstill.common.errors import DataError

RANGE = 60.0
"""Decibels below the loudest level of a recording at which levels are cut."""

_LOUDEST = 255
_STEPS = 4
"""Byte of the loudest level, and steps to a decibel: the faintest level is 15."""

_SILENCE = 1e-12
_BATCH = 256


def log_mel(
    recordings: Sequence[Recording], *, mels: int, window: float, hop: float, seconds: float
) -> NDArray[np.uint8]:
    """Log-mel spectrograms: (N, 1, mels, frames) bytes, quarter decibels from 15 to 255, `PADDING` behind the end.

    Args:
        recordings: of one rate; what exceeds `seconds` is cut.
        mels: bands from 0 to half the rate, of equal width on the mel scale.
        window: of the short-time Fourier transform (Hann), in milliseconds.
        hop: from frame to frame, in milliseconds.
        seconds: decide the number of frames.

    Raises:
        DataError: if the rates differ, or a band is too narrow for the window.
    """
    rate = recordings[0].rate
    for recording in recordings:
        if recording.rate != rate:
            raise DataError(
                f"{recording.where} of {recording.rate} Hz",
                f"expected {rate} Hz like {recordings[0].where}",
                "resample it",
            )
    size, step = 2 * max(1, round(rate * window / 2000)), max(1, round(rate * hop / 1000))
    frames = 1 + max(0, math.ceil((round(rate * seconds) - size) / step))
    filters = mel_filters(mels, size=size, rate=rate)
    lengths = np.array([len(recording.samples) for recording in recordings])
    last = np.maximum((lengths - size + step - 1) // step, 0)
    heard = np.arange(frames) <= last[:, None]
    levels = np.concatenate(
        [_decibels(batch, filters, step) for batch in _padded(recordings, size + (frames - 1) * step)]
    )
    return _bytes(levels, heard[:, None])[:, None]


def mel_filters(mels: int, *, size: int, rate: int) -> NDArray[np.float64]:
    """Triangles of height 1 over the frequencies of a Fourier transform: (mels, size // 2 + 1) float64.

    Band k rises from corner k to corner k + 1 and falls to corner k + 2; the corners divide 0 to rate / 2 evenly on the
    scale mel = 2595 · log10(1 + hertz / 700).

    Args:
        mels: number of bands.
        size: of the transform, in samples.
        rate: samples a second.

    Raises:
        DataError: if a band holds no frequency of the transform.
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    hertz = np.arange(size // 2 + 1, dtype=np.float64) * rate / size
    rise = (hertz - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    fall = (corners[2:, None] - hertz) / (corners[2:] - corners[1:-1])[:, None]
    filters: NDArray[np.float64] = np.maximum(np.minimum(rise, fall), 0)
    if not bool(filters.sum(1).all()):
        raise DataError(
            f"{mels} bands from windows of {size} samples at {rate} Hz",
            "expected a frequency in each band",
            "lower 'mels' or raise 'window'",
        )
    return filters


def _padded(recordings: Sequence[Recording], length: int) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(recordings), _BATCH):
        batch = recordings[start : start + _BATCH]
        samples = np.zeros((len(batch), length))
        for row, recording in zip(samples, batch, strict=True):
            heard = recording.samples[:length]
            row[: len(heard)] = heard
        yield samples


def _decibels(samples: NDArray[np.float64], filters: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """Levels of (N, samples): (N, mels, frames); a sine of full scale has about 0 dB in its band."""
    size = 2 * (filters.shape[1] - 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    waves = np.fft.rfft(sliding_window_view(samples, size, axis=1)[:, ::step] * hann)  # (N, frames, size // 2 + 1)
    power = (waves.real**2 + waves.imag**2) * (2 / hann.sum()) ** 2
    levels: NDArray[np.float64] = 10 * np.log10(power @ filters.T + _SILENCE)
    return levels.swapaxes(1, 2)


def _bytes(levels: NDArray[np.float64], heard: NDArray[np.bool_]) -> NDArray[np.uint8]:
    loudest = np.where(heard, levels, -np.inf).max((1, 2), keepdims=True)
    below = np.clip(loudest - levels, 0, RANGE)
    return np.where(heard, _LOUDEST - (_STEPS * below).round(), PADDING).astype(np.uint8)
