"""Average precision by the rules of PASCAL VOC. Everingham, Van Gool, Williams, Winn, Zisserman 2010, IJCV 88(2).

Detections of a class are taken over all images by falling score. One is right if its IoU with the object that it
overlaps most is 0.5 or more and no earlier one has found that object; if the object is marked difficult, it counts
neither as right nor as wrong. Until 2009, the AP is the mean, over the recalls 0, 0.1 to 1, of the highest precision at
that recall or above; from 2010 on, it is the area below the curve of these precisions over all recalls. Boxes are
x1, y1, x2, y2 with x2 - x1 as width, which for boxes from VOC's files is its xmax - xmin + 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

LEAST_IOU = 0.5
Image = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Detections and objects of an image."""


def average_precisions(images: Sequence[Image], classes: int, *, eleven_points: bool) -> np.ndarray:
    """The AP of each class, float64 `(classes,)`; NaN for a class without objects that count.

    Args:
        images: of detections of equal scores, those of earlier images come first.
    """
    found = np.full(classes, np.nan)
    for label in range(classes):
        scores, verdicts, count = judged(images, label)
        if count:
            order = np.argsort(-scores, kind="stable")
            found[label] = ap_of(verdicts[order], count, eleven_points=eleven_points)
    return found


def judged(images: Sequence[Image], label: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores and verdicts (1 right, 0 wrong, -1 not counted) of the detections of a class, and its objects."""
    scores, verdicts, count = [np.empty(0)], [np.empty(0, np.int64)], 0
    for found, truth in images:
        of_class, objects = found["labels"] == label, truth["labels"] == label
        difficult = truth["iscrowd"][objects].bool() if "iscrowd" in truth else torch.zeros(int(objects.sum())).bool()
        count += int((~difficult).sum())
        own = found["scores"][of_class].double().numpy()
        order = np.argsort(-own, kind="stable")
        scores.append(own[order])
        boxes = found["boxes"][of_class].double()[torch.from_numpy(order)]
        verdicts.append(verdicts_of(boxes, truth["boxes"][objects].double(), difficult.numpy()))
    return np.concatenate(scores), np.concatenate(verdicts), count


def verdicts_of(boxes: Tensor, objects: Tensor, difficult: np.ndarray) -> np.ndarray:
    """The verdicts on the boxes `(N, 4)` of an image, which are given by falling score."""
    verdicts = np.zeros(len(boxes), np.int64)
    if not len(boxes) or not len(objects):
        return verdicts
    overlaps, nearest = box_iou(boxes, objects).max(1)
    taken: set[int] = set()
    for index, (overlap, one) in enumerate(zip(overlaps.tolist(), nearest.tolist(), strict=True)):
        if overlap < LEAST_IOU:
            continue
        if difficult[one]:
            verdicts[index] = -1
        elif one not in taken:
            verdicts[index] = 1
            taken.add(one)
    return verdicts


def ap_of(verdicts: np.ndarray, count: int, *, eleven_points: bool) -> float:
    """The AP of verdicts in the order of falling score, with `count` objects."""
    counted = verdicts[verdicts >= 0]
    right = counted.cumsum()
    if not len(right):
        return 0.0
    # The highest precision at each recall or above.
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    if eleven_points:
        # In whole numbers: 3 of 10 objects are a recall of 0.3, which as a float can be less.
        reached = [np.flatnonzero(10 * right >= tenth * count) for tenth in range(11)]
        return float(np.mean([precision[places[0]] if len(places) else 0.0 for places in reached]))
    return float(precision[counted == 1].sum() / count)
