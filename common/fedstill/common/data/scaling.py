"""Standardisation with public statistics: those of the proxy set, never of private data.

Sums are exact, so that every machine and thread count gives the same bits: both sides compare the digest of the
prepared proxy set.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LIMIT = 10.0
"""Standard deviations at which a table's numbers are cut: a value that the public set does not know cannot run away."""


def moments(values: NDArray[np.generic]) -> tuple[float, float]:
    """Mean and standard deviation of bytes or floats; (0, 1) of none, and a standard deviation of 1 for a constant."""
    count = values.size
    if not count:
        return 0.0, 1.0
    if values.dtype == np.uint8:
        frequency = np.bincount(values.ravel(), minlength=256).tolist()
        total = sum(value * times for value, times in enumerate(frequency))
        squares = sum(value * value * times for value, times in enumerate(frequency))
        return total / count, math.sqrt((squares * count - total * total) / count**2) or 1.0
    numbers = values.astype(np.float64).ravel()
    mean = math.fsum(numbers.tolist()) / count
    return mean, math.sqrt(math.fsum(((numbers - mean) ** 2).tolist()) / count) or 1.0


def standardise_images(inputs: Tensor, proxy: Tensor) -> Tensor:
    """Images (N, C, H, W) of bytes or floats as float32, each channel with mean 0 and deviation 1 on the proxy set."""
    pairs = [moments(channel.numpy()) for channel in proxy.unbind(1)]
    mean, deviation = (torch.tensor(part, dtype=torch.float32).view(1, -1, 1, 1) for part in zip(*pairs, strict=True))
    return torch.sub(inputs, mean).div_(deviation)


def standardise_rows(inputs: Tensor, proxy: Tensor) -> Tensor:
    """Rows (N, F) with NaN for what is missing, as float32 without gaps.

    A column gets mean 0 and deviation 1 on the proxy set; one of nothing but 0 and 1 there (a flag, a one-hot column)
    stays as it is. Missing values become the proxy set's mean.
    """
    columns = []
    for own, public in zip(inputs.unbind(1), proxy.double().unbind(1), strict=True):
        known = public[~public.isnan()]
        mean, deviation = moments(known.numpy())
        if len(known) and bool(((known == 0) | (known == 1)).all()):
            columns.append(torch.where(own.isnan(), mean, own.double()))
        else:
            columns.append((torch.where(own.isnan(), mean, own.double()) - mean) / deviation)
    return torch.stack(columns, 1).clamp_(-_LIMIT, _LIMIT).float()
