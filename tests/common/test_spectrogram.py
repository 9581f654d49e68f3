from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedstill.common.data.audio import Recording, read_wav
from fedstill.common.data.scaling import standardise_spectrograms
from fedstill.common.data.spectrogram import log_mel
from fedstill.common.data.spectrogram import mel_filters as filter_bank
from fedstill.common.errors import DataError

RATE = 8000


def wav(frames: bytes, *, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(frames)
    return content.getvalue()


def sine(hertz: float, count: int, *, rate: int = RATE) -> Recording:
    samples = np.sin(2 * np.pi * hertz * np.arange(count) / rate).astype(np.float32)
    return Recording(f"{hertz} Hz", samples, rate)


def spectra(*recordings: Recording, mels: int = 32, seconds: float = 0.2) -> torch.Tensor:
    return torch.from_numpy(log_mel(recordings, mels=mels, window=32.0, hop=16.0, seconds=seconds))


def mel_filters(mels: int, *, size: int, rate: int) -> torch.Tensor:
    return torch.from_numpy(filter_bank(mels, size=size, rate=rate))


# WAV -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "width"),
    [
        (bytes([128, 192, 0]), 1),
        (struct.pack("<3h", 0, 2**14, -(2**15)), 2),
        (struct.pack("<3i", 0, 2**30, -(2**31)), 4),
    ],
)
def test_samples_by_hand(frames: bytes, width: int) -> None:
    recording = read_wav(wav(frames, width=width, rate=16000), "a.wav")
    assert recording.samples.tolist() == [0.0, 0.5, -1.0]
    assert recording.samples.dtype == np.float32
    assert (recording.where, recording.rate) == ("a.wav", 16000)


def test_channels_become_their_mean() -> None:
    frames = struct.pack("<4h", 2**14, 0, -(2**14), 2**14)
    assert read_wav(wav(frames, channels=2), "a.wav").samples.tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no uncompressed WAV: it ends too early"),
        (b"ID3 and more", "is no uncompressed WAV: file does not start with RIFF id"),
        (wav(b"\0\0").replace(b"\x01\x00\x01\x00", b"\x55\x00\x01\x00", 1), "is no uncompressed WAV: unknown format"),
        (wav(bytes(6), width=3), "of 24 bits: expected 8, 16 or 32 bits"),
        (wav(b""), "of 0 samples: expected at least one"),
        (wav(bytes(20))[:-5], "of 15 bytes: ends before its last sample"),
    ],
)
def test_damaged_wav(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.wav.*{message}"):
        read_wav(content, "x.wav")


# Filters -------------------------------------------------------------------------------------------------------------


def test_filters_by_hand() -> None:
    # Corners of two bands from 0 to 4000 Hz: 0, 700 · ((1 + 4000 / 700) ** (1 / 3) − 1), the same with 2 / 3, and 4000.
    low, high = 620.580, 1791.330
    filters = mel_filters(2, size=8, rate=8000)  # of the frequencies 0, 1000, 2000, 3000 and 4000 Hz
    assert filters[0].tolist() == pytest.approx([0, (high - 1000) / (high - low), 0, 0, 0], abs=1e-5)
    second = [0, (1000 - low) / (high - low), 2000 / (4000 - high), 1000 / (4000 - high), 0]
    assert filters[1].tolist() == pytest.approx(second, abs=1e-5)


def test_neighbouring_filters_share_every_frequency_between_their_peaks() -> None:
    filters = mel_filters(20, size=256, rate=RATE)
    peaks = filters.argmax(1)
    assert torch.allclose(filters.sum(0)[peaks[0] + 1 : peaks[-1]], torch.ones((), dtype=torch.float64))
    assert (peaks.diff() > 0).all()
    assert (filters.amax(1) > 0.5).all()
    # Wider and wider in hertz.
    assert ((filters > 0).sum(1).diff() >= -1).all()


def test_bands_too_narrow_for_the_window() -> None:
    with pytest.raises(DataError, match=r"60 bands from windows of 64 samples at 8000 Hz.*lower 'mels'"):
        mel_filters(60, size=64, rate=RATE)


# Spectrograms --------------------------------------------------------------------------------------------------------


def test_a_sine_is_loudest_in_its_band() -> None:
    filters = mel_filters(32, size=256, rate=RATE)
    for band in (3, 15, 28):
        hertz = float(filters[band].argmax()) * RATE / 256
        picture = spectra(sine(hertz, 1600))[0, 0].int()
        assert picture.argmax(0).tolist() == [band] * picture.shape[1]
        assert int(picture.max()) == 255
        # Two bands of silence away a Hann window lets nothing through that is not 40 dB fainter.
        assert int(picture[(band + 16) % 32].max()) <= 255 - 4 * 40


def test_quarter_decibels_below_the_loudest_frame() -> None:
    # 500 Hz is frequency 16 of 256 samples at 8 kHz: a whole number of periods in each window.
    loud = sine(500, 256).samples
    steps = np.outer([1, 0.1, 1e-6], loud).ravel().astype(np.float32)
    recording = Recording("steps", steps, RATE)
    picture = log_mel([recording], mels=8, window=32.0, hop=32.0, seconds=0.096)[0, 0]
    band = int(mel_filters(8, size=256, rate=RATE)[:, 16].argmax())
    # A tenth of the amplitude is 20 dB, 80 steps; 120 dB are cut at 60.
    assert picture[band].tolist() == [255, 175, 15]


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (256, 1), (257, 2), (384, 2), (385, 3), (1600, 12), (5000, 12)])
def test_frames_that_are_heard(count: int, frames: int) -> None:
    # 0.2 s are 1600 samples: one frame of 256, and 11 more for every 128 of the other 1344 or a part of them.
    heard = (spectra(sine(440, count))[0, 0] > 0).any(0)
    assert heard.tolist() == [True] * frames + [False] * (12 - frames)


def test_a_recording_does_not_depend_on_its_company() -> None:
    short, long = sine(440, 700), sine(1000, 1500)
    together = spectra(short, long)
    assert together.dtype == torch.uint8
    assert together.shape == (2, 1, 32, 12)
    assert torch.equal(together[:1], spectra(short))
    assert torch.equal(together[1:], spectra(long))


def test_how_loud_a_recording_is_tells_nothing() -> None:
    tone = sine(440, 1000)
    rng = np.random.default_rng(0)
    noisy: NDArray[np.float32] = (tone.samples + 0.1 * rng.standard_normal(1000)).astype(np.float32)
    assert torch.equal(
        spectra(Recording("a", noisy, RATE)), spectra(Recording("b", (noisy / 8).astype(np.float32), RATE))
    )


def test_digital_silence_is_heard_as_such() -> None:
    picture = spectra(Recording("silence", np.zeros(256, np.float32), RATE))[0, 0]
    assert (picture[:, 0] == 255).all()
    assert (picture[:, 1:] == 0).all()


def test_mixed_rates() -> None:
    with pytest.raises(DataError, match="880 Hz of 16000 Hz: expected 8000 Hz like 440 Hz"):
        spectra(sine(440, 500), sine(880, 500, rate=16000))


def test_standardised_over_what_is_heard_of_the_proxy_set() -> None:
    # One band: heard 10, 20, 30 and 40 have mean 25 and variance 125; padding counts nothing and becomes 0.
    proxy = torch.tensor([[[[10, 20, 0]]], [[[30, 40, 0]]]], dtype=torch.uint8)
    ready = standardise_spectrograms(torch.tensor([[[[25, 50, 0]]]], dtype=torch.uint8), proxy)
    assert ready.dtype == torch.float32
    assert ready.flatten().tolist() == pytest.approx([0.0, 25 / 125**0.5, 0.0])
    two = standardise_spectrograms(torch.tensor([[[[1], [7]]]], dtype=torch.uint8), torch.tensor([[[[1], [9]]]]).byte())
    assert two.flatten().tolist() == [0.0, -2.0]  # a band that never changes has deviation 1
