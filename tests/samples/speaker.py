"""The recordings of the sample of speech."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SAMPLE = runpy.run_path(str(Path(__file__).with_name("speech.py")))

OPTIONS: dict[str, Any] = {**_SAMPLE["OPTIONS"], "block": 4}
write: Callable[[Path], None] = _SAMPLE["write"]
