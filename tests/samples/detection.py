"""Sixty pictures of coloured discs, drawn, with their boxes in Pascal VOC's files, in one zip archive."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedstill.common.seeding import numpy_rng

OPTIONS: dict[str, Any] = {"source": "discs", "width": 32, "height": 24}

COLOURS = {"blue": (60, 60, 220), "red": (220, 60, 60)}
WIDTH, HEIGHT = 64, 48


def annotation(boxes: list[tuple[str, int, int, int, int]], *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """An annotation file; edges in pixels from 1, the last one included."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{upper}</ymin>"
        f"<xmax>{right}</xmax><ymax>{lower}</ymax></bndbox></object>"
        for name, left, upper, right, lower in boxes
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def write(folder: Path) -> None:
    """Write discs/discs.zip: 45 pictures to learn from, 15 to measure with; red discs are rarer than blue ones."""
    (folder / "discs").mkdir()
    rng = numpy_rng(0, "detection sample")
    rows, columns = np.indices((HEIGHT, WIDTH))
    with zipfile.ZipFile(folder / "discs" / "discs.zip", "w") as archive:
        for number in range(60):
            pixels = rng.integers(180, 220, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            boxes = []
            for name, place in (("blue", 16), ("red", 48))[: 1 + number % 2]:
                radius, x, y = rng.integers(6, 10), place + rng.integers(-4, 5), rng.integers(12, 37)
                pixels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = COLOURS[name]
                boxes.append((name, int(x - radius + 1), int(y - radius + 1), int(x + radius + 1), int(y + radius + 1)))
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "jpeg")
            archive.writestr(f"Discs/JPEGImages/{number:02d}.jpg", stream.getvalue())
            archive.writestr(f"Discs/Annotations/{number:02d}.xml", annotation(boxes))
        for part, numbers in (("train", range(30)), ("val", range(30, 45)), ("test", range(45, 60))):
            archive.writestr(f"Discs/ImageSets/Main/{part}.txt", "\n".join(f"{number:02d}" for number in numbers))
