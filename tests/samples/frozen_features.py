"""Features of two classes in an .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

OPTIONS: dict[str, Any] = {"source": "features.npz"}


def write(folder: Path) -> None:
    """Write features.npz with 40 rows of six features."""
    labels = np.arange(40) % 2
    noise = np.random.default_rng(0).normal(size=(40, 6))
    np.savez(folder / "features.npz", features=(noise + 2 * labels[:, None]).astype(np.float16), labels=labels)
