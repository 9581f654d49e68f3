"""Photographs with boxes around objects, in Pascal VOC's layout.

Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4: `Annotations/NAME.xml`, `JPEGImages/NAME.jpg` and
lists of names in `ImageSets/Main/PART.txt`, in a folder or an archive, at any depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fedstill.common.data.archives import FileStore
from fedstill.common.data.images import SUFFIXES as IMAGES
from fedstill.common.errors import DataError

SUFFIXES = (*IMAGES, ".xml", ".txt")

_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """What is on one photograph.

    Attributes:
        image: name of the image's file.
        labels: class of each box.
        corners: (B, 4) left, upper, right and lower edge, in widths and heights of the photograph.
    """

    image: str
    labels: tuple[str, ...]
    corners: NDArray[np.float64]


def read_photographs(store: FileStore, where: str) -> dict[str, list[Photograph]]:
    """The photographs of each part, in order of their names; all of them are "train" where no list tells parts.

    Raises:
        DataError: if there are none, one lacks its image or annotation, or an annotation is broken.
    """
    folders: dict[str, dict[str, str]] = {}
    for name in store.names:
        path = PurePosixPath(name)
        folders.setdefault(path.parent.name, {})[path.stem] = name
    annotations = folders.get("Annotations", {})
    if not annotations:
        raise DataError(where, "expected Annotations/NAME.xml", "name a folder or an archive in Pascal VOC's layout")
    images = folders.get("JPEGImages", {})
    photographs = {name: _photograph(store, path, images.get(name, "")) for name, path in annotations.items()}
    lists = {part: _names(store, path) for part, path in folders.get("Main", {}).items()}
    parts: dict[str, list[Photograph]] = {}
    for part, names in (lists or {"train": sorted(photographs)}).items():
        for name in names:
            if name not in photographs:
                raise DataError(f"{where}: '{name}' in part '{part}'", f"expected Annotations/{name}.xml")
        parts[part] = [photographs[name] for name in names]
    return parts


def _names(store: FileStore, path: str) -> list[str]:
    # Lists for one class have a second column that says whether it is there; the names are the same.
    lines = store.read(path).decode("utf-8", "replace").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _photograph(store: FileStore, name: str, image: str) -> Photograph:
    if not image:
        raise DataError(f"{name}", f"expected an image JPEGImages/{PurePosixPath(name).stem}.jpg")
    try:
        tree = ElementTree.fromstring(store.read(name))
        width, height = (float(_text(tree, f"size/{side}")) for side in ("width", "height"))
        found = [
            (_text(one, "name"), [float(_text(one, f"bndbox/{edge}")) for edge in _EDGES])
            for one in tree.iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{name}", f"is no whole annotation: {error}", "fetch the file again") from None
    if not (width > 0 and height > 0):
        raise DataError(f"{name}: size {width:g} × {height:g}", "expected the photograph's size in pixels")
    # Pixels are counted from 1 and the last one belongs to the box.
    edges = np.array([edges for _, edges in found], np.float64).reshape(-1, 4) - (1, 1, 0, 0)
    edges = np.clip(edges, 0, (width, height, width, height))
    # A box of one pixel, or none, is a slip of whoever drew it (two in BCCD's 4,888).
    whole = np.flatnonzero((edges[:, 2:] - edges[:, :2] > 1).all(1)).tolist()
    return Photograph(image, tuple(found[row][0] for row in whole), edges[whole] / (width, height, width, height))


def _text(tree: ElementTree.Element, path: str) -> str:
    text = tree.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"no <{path}>")
    return text.strip()
