"""Log-mel spectrograms of recordings as bytes, and their standardisation with public statistics.

Mel scale and triangular filters as in HTK (Young et al. 2006, The HTK Book, section 5.4); levels are relative to the
loudest one of a recording and cut far below it, as in Whisper (Radford et al. 2022, https://arxiv.org/abs/2212.04356,
with 80 dB): how near the microphone was tells nothing. Quarter decibels as bytes, from double precision, are the same
on every machine, which the last bits of a Fourier transform are not: both sides compare the digest of the proxy set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.data.audio import Recording
from fedstill.common.data.scaling import moments
from fedstill.common.errors import DataError

PADDING = 0
"""Byte of every band behind a recording's last frame; a band that is heard has at least 1."""

RANGE = 60.0
"""Decibels below the loudest level of a recording at which levels are cut."""

_LOUDEST = 255
_STEPS = 4
"""Byte of the loudest level, and steps to a decibel: the faintest level is 15."""

_SILENCE = 1e-12
_BATCH = 256


def log_mel(recordings: Sequence[Recording], *, mels: int, window: float, hop: float, seconds: float) -> Tensor:
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
    lengths = torch.tensor([len(recording.samples) for recording in recordings])
    last = ((lengths - size + step - 1) // step).clamp(min=0)
    heard = torch.arange(frames) <= last[:, None]
    levels = torch.cat([_decibels(batch, filters, step) for batch in _padded(recordings, size + (frames - 1) * step)])
    return _bytes(levels, heard[:, None])[:, None]


def mel_filters(mels: int, *, size: int, rate: int) -> Tensor:
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
    corners = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    hertz = torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size
    rise = (hertz - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    fall = (corners[2:, None] - hertz) / (corners[2:] - corners[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp(min=0)
    if not bool(filters.sum(1).all()):
        raise DataError(
            f"{mels} bands from windows of {size} samples at {rate} Hz",
            "expected a frequency in each band",
            "lower 'mels' or raise 'window'",
        )
    return filters


def standardise_spectrograms(inputs: Tensor, proxy: Tensor) -> Tensor:
    """Spectrograms (N, 1, mels, frames) of bytes as float32; padding becomes 0.

    Each band gets mean 0 and deviation 1 over what is heard in the proxy set.
    """
    bands = [band.numpy() for band in proxy[:, 0].unbind(1)]
    pairs = [moments(band[band != PADDING]) for band in bands]
    mean, deviation = (torch.tensor(part, dtype=torch.float32).view(1, 1, -1, 1) for part in zip(*pairs, strict=True))
    return torch.sub(inputs, mean).div_(deviation).mul_(inputs != PADDING)


def _padded(recordings: Sequence[Recording], length: int) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(recordings), _BATCH):
        batch = recordings[start : start + _BATCH]
        samples = np.zeros((len(batch), length))
        for row, recording in zip(samples, batch, strict=True):
            heard = recording.samples[:length]
            row[: len(heard)] = heard
        yield samples


def _decibels(samples: NDArray[np.float64], filters: Tensor, step: int) -> Tensor:
    """Levels of (N, samples): (N, mels, frames) float64; a sine of full scale has about 0 dB in its band."""
    size = 2 * (filters.shape[1] - 1)
    hann = torch.hann_window(size, dtype=torch.float64)
    waves = torch.stft(
        torch.from_numpy(samples), size, step, window=hann, center=False, onesided=True, return_complex=True
    )
    power = (waves.real.square() + waves.imag.square()) * (2 / hann.sum()) ** 2
    return 10 * torch.log10(filters @ power + _SILENCE)


def _bytes(levels: Tensor, heard: Tensor) -> Tensor:
    loudest = levels.masked_fill(~heard, -torch.inf).amax((1, 2), keepdim=True)
    below = (loudest - levels).clamp(0, RANGE)
    return (_LOUDEST - (_STEPS * below).round()).to(torch.uint8).masked_fill(~heard, PADDING)
