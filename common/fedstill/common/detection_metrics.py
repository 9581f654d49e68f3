"""Measures of object detection, computed by COCO's own code."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np

from fedstill.common.data.boxes import Boxes

_MOST = 100
"""Boxes of an image that count, the surest first, as in COCO."""


def average_precision(found: Boxes, true: Boxes, *, classes: int, iou: float = 0.5) -> list[float]:
    """Average precision of each class at one overlap; NaN for a class without true boxes.

    Lin et al. 2014, https://arxiv.org/abs/1405.0312: the mean precision at 101 recalls.

    Args:
        found: with scores.
        true: what there is.
        classes: size of the label space.
        iou: intersection over union from which a box is found.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = sorted({*found.image.tolist(), *true.image.tolist()})
    sides = []
    with redirect_stdout(io.StringIO()):  # COCO's code prints each of its steps
        for boxes in (true, found):
            side = COCO()
            side.dataset = {
                "images": [{"id": image} for image in images],
                "categories": [{"id": label} for label in range(classes)],
                "annotations": _annotations(boxes),
            }
            side.createIndex()
            sides.append(side)
        judge = COCOeval(*sides, "bbox")
        judge.params.iouThrs = np.array([iou])
        judge.params.maxDets = [_MOST]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, np.inf]], ["all"]
        judge.evaluate()
        judge.accumulate()
    # (overlaps, recalls, classes, areas, limits); −1 without true boxes. Its ε keeps precisions a hair below 1.
    precision = judge.eval["precision"][0, :, :, 0, 0]
    return [float("nan") if column[0] < 0 else round(float(column.mean()), 12) for column in precision.T]


def _annotations(boxes: Boxes) -> list[dict[str, object]]:
    edges = np.concatenate([boxes.corner, boxes.size], 1)
    rows = zip(boxes.image.tolist(), boxes.label.tolist(), edges.tolist(), boxes.size.prod(1), boxes.score, strict=True)
    return [
        # COCO's code takes an id of 0 for "no match".
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
            "score": score,
        }
        for number, (image, label, box, area, score) in enumerate(rows, start=1)
    ]
