"""Sixty commands of SNIPS's form: INTENT/train_INTENT_full.json and INTENT/validate_INTENT.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {"source": "commands", "vocabulary": 60, "length": 6}

_PLACES = ("Rome", "New York", "Oslo")
_SONGS = ("Hey Jude", "Let It Be", "Yellow Submarine")


def write(folder: Path) -> None:
    """Write the folder commands with two intents of 30 and 10 commands."""
    for part, count, full in (("train", 30, "_full"), ("validate", 10, "")):
        for intent, ask, kind, words in (("Weather", "rain in ", "city", _PLACES), ("Music", "play ", "song", _SONGS)):
            place = folder / "commands" / intent
            place.mkdir(parents=True, exist_ok=True)
            rows = [
                {"data": [{"text": ask}, {"text": words[number % 3], "entity": kind}, {"text": " now"}]}
                for number in range(count)
            ]
            (place / f"{part}_{intent}{full}.json").write_text(json.dumps({intent: rows}))
