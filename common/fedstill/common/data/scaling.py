"""Standardisation of tensors with public statistics: those of the proxy set, never of private data."""

from __future__ import annotations

import torch
from torch import Tensor

from fedstill.common.data.preparation import Bands, Channels, Columns, Preparation


def prepared(preparation: Preparation, inputs: Tensor) -> Tensor:
    """Raw inputs (N, …) as a model reads them."""
    return torch.from_numpy(preparation.apply(inputs.numpy()))


def standardise_images(inputs: Tensor, proxy: Tensor) -> Tensor:
    """Images (N, C, H, W) of bytes or floats as float32, each channel with mean 0 and deviation 1 on the proxy set."""
    return prepared(Channels.of(proxy.numpy()), inputs)


def standardise_rows(inputs: Tensor, proxy: Tensor) -> Tensor:
    """Rows (N, F) with NaN for what is missing, as float32 without gaps.

    A column gets mean 0 and deviation 1 on the proxy set; one of nothing but 0 and 1 there (a flag, a one-hot column)
    stays as it is. Missing values become the proxy set's mean.
    """
    return prepared(Columns.of(proxy.numpy()), inputs)


def standardise_spectrograms(inputs: Tensor, proxy: Tensor) -> Tensor:
    """Spectrograms (N, 1, mels, frames) of bytes as float32; padding becomes 0.

    Each band gets mean 0 and deviation 1 over what is heard in the proxy set.
    """
    return prepared(Bands.of(proxy.numpy()), inputs)
