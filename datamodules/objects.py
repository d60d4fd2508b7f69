"""The objects of an image: boxes with classes, on their way from annotations to batches."""

from dataclasses import dataclass, replace
from typing import Any

import albumentations as A
import numpy as np
import torch

LEAST_VISIBLE = 0.25
"""Fraction of a box's area that must be inside a crop; boxes with less are left out."""
LEAST_SIDE = 1.0
"""Pixels of the shorter side of a box that is kept."""
LARGEST = 1e9
"""Pixels above which a number is no coordinate."""
PROPOSED = -1
"""The label of proposals while they move with the objects."""


@dataclass(frozen=True)
class Objects:
    """The objects of an image.

    Boxes are x1, y1, x2, y2 in pixels; x1 = 0 is the left edge of the first pixel and x2 = W the right edge of the
    last.
    """

    boxes: np.ndarray
    """float32 `(N, 4)`; N may be 0."""
    labels: np.ndarray
    """int64 `(N,)`."""
    crowd: np.ndarray
    """bool `(N,)`: regions of many objects, or difficult ones, which neither train nor count in scores."""
    masks: np.ndarray | None = None
    """bool `(N, H, W)` where the data have a mask of each object, and the head learns them."""
    proposals: np.ndarray | None = None
    """float32 `(P, 4)`: boxes that may hold an object, if they are found beforehand; see `datamodules/proposals.py`."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What batches hold."""
        found = {
            "boxes": torch.from_numpy(self.boxes),
            "labels": torch.from_numpy(self.labels),
            "iscrowd": torch.from_numpy(self.crowd).long(),
        }
        more = {"masks": self.masks, "proposals": self.proposals}
        return found | {name: torch.from_numpy(value) for name, value in more.items() if value is not None}


def objects_of(boxes: Any, labels: Any, crowd: Any = None) -> Objects:
    """Objects from sequences of any kind; none of them is a crowd unless it is said."""
    numbers = np.asarray(labels, np.int64).reshape(-1)
    several = np.zeros(len(numbers), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
    return Objects(np.asarray(boxes, np.float32).reshape(-1, 4), numbers, several)


def is_plausible(number: float) -> bool:
    """Whether a number can be a coordinate: it is finite and no larger than `LARGEST`."""
    return abs(number) <= LARGEST


def has_sides(x1: float, y1: float, x2: float, y2: float) -> bool:
    """Whether a box has a width and a height in float32, in which boxes are kept."""
    return bool(np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2))


def box_params() -> A.BboxParams:
    """How albumentations moves boxes with their image: clipped to it, and left out if too little remains."""
    return A.BboxParams(
        "pascal_voc",
        label_fields=["labels", "crowd"],
        min_visibility=LEAST_VISIBLE,
        min_width=LEAST_SIDE,
        min_height=LEAST_SIDE,
        clip=True,
    )


def transformed(pipeline: A.Compose, image: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
    """Image and objects after a pipeline that was composed for boxes; objects stay if it changes images only."""
    if not pipeline.processors:
        return pipeline(image=image)["image"], objects
    if objects.masks is not None:
        return transformed_with_masks(pipeline, image, objects, objects.masks)
    moving = objects if objects.proposals is None else with_proposals(objects, objects.proposals)
    out = pipeline(image=image, bboxes=moving.boxes, labels=moving.labels, crowd=moving.crowd)
    moved = objects_of(out["bboxes"], out["labels"], out["crowd"])
    if objects.proposals is None:
        return out["image"], moved
    proposed = moved.labels == PROPOSED
    alone = objects_of(moved.boxes[~proposed], moved.labels[~proposed], moved.crowd[~proposed])
    return out["image"], replace(alone, proposals=moved.boxes[proposed])


def with_proposals(objects: Objects, proposals: np.ndarray) -> Objects:
    """Objects and proposals in one list, so that they move together."""
    return objects_of(
        np.concatenate([objects.boxes, proposals]),
        np.concatenate([objects.labels, np.full(len(proposals), PROPOSED)]),
        np.concatenate([objects.crowd, np.zeros(len(proposals), bool)]),
    )


def transformed_with_masks(
    pipeline: A.Compose, image: np.ndarray, objects: Objects, masks: np.ndarray
) -> tuple[np.ndarray, Objects]:
    """`transformed` for objects with masks; those of boxes that are left out are left out too."""
    rows = np.arange(len(masks))
    given = {"masks": masks.astype(np.uint8)} if len(masks) else {}  # albumentations takes no empty stack
    out = pipeline(image=image, bboxes=objects.boxes, labels=rows, crowd=objects.crowd, **given)
    kept = np.asarray(out["labels"], np.int64).reshape(-1)
    moved = np.stack(list(out["masks"])) if len(masks) else np.zeros((0, *out["image"].shape[:2]))
    found = objects_of(out["bboxes"], objects.labels[kept], out["crowd"])
    return out["image"], replace(found, masks=moved[kept].astype(bool))
