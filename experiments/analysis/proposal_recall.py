"""How well proposals cover objects: each object's best IoU with a proposal, for the first N of them.

Hosang, Benenson, Dollár, Schiele 2015, arXiv:1502.05082: recall is the part of the objects whose best IoU is high
enough, and the average best overlap (ABO) its mean.
"""

from typing import cast

import numpy as np
import torch
from torchvision.ops import box_iou

from datamodules.errors import DataError
from datamodules.objects import Objects
from datamodules.samples import Samples


def best_overlaps(objects: np.ndarray, boxes: np.ndarray, count: int | None = None) -> np.ndarray:
    """The best IoU of each object `(N, 4)` with the first `count` boxes `(P, 4)`: `(N,)`, 0 without boxes."""
    first = boxes[:count]
    if not len(first):
        return np.zeros(len(objects))
    return box_iou(torch.from_numpy(objects), torch.from_numpy(first)).amax(1).numpy()


def overlaps_of(samples: Samples, count: int | None = None) -> tuple[np.ndarray, list[int]]:
    """The best IoU of every object of a split, and the number of boxes of each image. Unreadable ones are left out."""
    best, counts = [np.zeros(0)], []
    for index in range(len(samples)):
        try:
            _, target, _ = samples.load(index)
        except DataError:
            continue
        objects = cast("Objects", target)
        assert objects.proposals is not None
        best.append(best_overlaps(objects.boxes[~objects.crowd], objects.proposals, count))
        counts.append(len(objects.proposals[:count]))
    return np.concatenate(best), counts
