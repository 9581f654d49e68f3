"""Boxes around objects, as the maps that models learn (see `outputs/dense.py`), and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from fedstill.common.outputs.dense import GEOMETRY

STRIDE = 4
"""Pixels of an image to a cell of its maps, in each direction."""

_SPREAD = 0.54 / 6
"""Deviation of the heat around a centre for each cell of width or height (TTFNet, Liu et al. 2019, section 4.2)."""

_LARGEST = 10.0
"""ln of cells: a box of 22,026 cells covers any image, and its size is a finite number."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes in several images, in no order.

    Attributes:
        image: (B,) int64 number of the image.
        label: (B,) int64 position in the label space.
        corner: (B, 2) float64 left and upper edge, in widths and heights of the image.
        size: (B, 2) float64 width and height, likewise.
        score: (B,) float64 certainty; 1 for true boxes.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    corner: NDArray[np.float64]
    size: NDArray[np.float64]
    score: NDArray[np.float64]


def centre_maps(
    corners: NDArray[np.float64], labels: NDArray[np.int64], *, classes: int, grid: tuple[int, int]
) -> NDArray[np.float32]:
    """The maps of one image: (height, width, classes + 4).

    Heat is exactly 1 at the cell of a box's centre and falls off around it; a cell has the geometry of the box that is
    hottest there. Of two boxes with their centres in one cell the first gives the geometry; the second is lost, or, if
    it is of another class, takes on the first one's.

    Args:
        corners: (B, 4) left, upper, right and lower edge, in widths and heights of the image; no empty box.
        labels: (B,) positions in the label space.
        classes: size of the label space.
        grid: height and width of the maps.
    """
    maps = np.zeros((*grid, classes + len(GEOMETRY)), np.float32)
    if not len(corners):
        return maps
    cells = np.array(grid[::-1], np.float64)  # horizontal first, as in boxes
    centre = (corners[:, :2] + corners[:, 2:]) / 2 * cells
    size = (corners[:, 2:] - corners[:, :2]) * cells
    cell = np.minimum(centre.astype(np.int64), cells.astype(np.int64) - 1)
    heat = _splat(cell[:, 0], size[:, 0], grid[1])[:, None, :] * _splat(cell[:, 1], size[:, 1], grid[0])[:, :, None]
    for label in np.unique(labels):
        maps[..., label] = heat[labels == label].max(0)
    owner = heat.argmax(0)
    rows, columns = np.indices(grid)
    maps[..., classes : classes + 2] = np.log(size)[owner]
    maps[..., classes + 2 :] = centre[owner] - np.stack([columns, rows], -1)
    maps[..., classes:][heat.max(0) == 0] = 0
    return maps


def _splat(cell: NDArray[np.int64], side: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Heat along one direction: (B, count), exactly 1 at the centre's cell."""
    distance = (np.arange(count) - cell[:, None]) / (_SPREAD * side[:, None])
    # Below a thousandth nothing is heat; else distant cells would learn a far box.
    heat = np.exp(-0.5 * distance**2)
    return np.where(heat < 1e-3, 0.0, heat).astype(np.float32)


def true_boxes(targets: Tensor) -> Boxes:
    """The boxes of target maps (N, height, width, C + 4): one at each centre."""
    heat = targets[..., : -len(GEOMETRY)]
    return _boxes(targets, (heat == 1).nonzero(), torch.ones_like(heat))


def found_boxes(logits: Tensor, *, limit: int = 100) -> Boxes:
    """The boxes of raw outputs (N, height, width, C + 4): at the peaks of the heat, at most `limit` in an image.

    Zhou et al. 2019, section 4: a peak is no smaller than its eight neighbours.
    """
    heat = torch.sigmoid(logits[..., : -len(GEOMETRY)])
    around = max_pool2d(heat.permute(0, 3, 1, 2), 3, stride=1, padding=1).permute(0, 2, 3, 1)
    peaks = torch.where(heat == around, heat, 0.0).flatten(1)
    best, places = peaks.topk(min(limit, peaks.shape[1]), dim=1)
    images = torch.arange(len(heat)).unsqueeze(1).expand_as(places)
    chosen = best > 0
    cell, label = places[chosen] // heat.shape[-1], places[chosen] % heat.shape[-1]
    where = torch.stack([images[chosen], cell // heat.shape[2], cell % heat.shape[2], label], 1)
    return _boxes(logits, where, heat)


def _boxes(maps: Tensor, where: Tensor, scores: Tensor) -> Boxes:
    """The boxes at (B, 4) places: image, row, column, class."""
    image, row, column, label = where.unbind(1)
    geometry = maps[image, row, column, -len(GEOMETRY) :].double().numpy()
    cells = np.array([maps.shape[2], maps.shape[1]], np.float64)
    size = np.exp(np.minimum(geometry[:, :2], _LARGEST)) / cells
    centre = (torch.stack([column, row], 1).numpy() + geometry[:, 2:]) / cells
    score = scores[image, row, column, label].double().numpy()
    return Boxes(image.numpy(), label.numpy(), centre - size / 2, size, score)
