"""A seed for every use of chance, derived from (run, round, client, purpose).

No code draws from a global generator: the same seed gives the same numbers in whatever order, process or engine the
clients run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *scope: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every part of `scope`, in order."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in scope)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *scope: str | int) -> np.random.Generator:
    """NumPy's generator for one purpose."""
    return np.random.default_rng(derive(seed, *scope))


def torch_rng(seed: int, *scope: str | int) -> torch.Generator:
    """A CPU generator of torch for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *scope))


@contextmanager
def torch_seeded(seed: int, *scope: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and put it back afterwards.

    Initialisers and dropout of torch take no generator of their own; this is the one way to seed them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *scope))
        yield
