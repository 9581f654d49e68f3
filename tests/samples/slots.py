"""The commands of the sample of intent-slots."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SAMPLE = runpy.run_path(str(Path(__file__).with_name("intent_slots.py")))

OPTIONS: dict[str, Any] = _SAMPLE["OPTIONS"]
write: Callable[[Path], None] = _SAMPLE["write"]
