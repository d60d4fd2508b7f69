"""SSD's windows: parts of an image around its objects, and larger canvases. Liu et al. 2015, arXiv:1512.02325, 2.2."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from datamodules.collate import IGNORE_INDEX

LARGEST = 4.0
"""Sides of a canvas, in sides of the image."""
SMALLEST = 0.3
"""Sides of a part, in sides of what it is taken from."""
RATIOS = (0.5, 2.0)
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""IoU that a part must have with an object, drawn anew for each attempt; 1: take all."""
ATTEMPTS = 40
"""Parts that are tried for one overlap."""


class ObjectWindow(A.DualTransform):
    """Put the image on a larger canvas half of the time, then take a part that overlaps an object by a drawn IoU.

    The numbers are torchvision's. As in the paper, the centre of at least one object lies in the part; an object stays
    if enough of it is visible (`objects.LEAST_VISIBLE`), not if its centre is.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

    def __init__(self, fill: tuple[float, ...] = (0.0, 0.0, 0.0), p: float = 1.0) -> None:
        super().__init__(p=p)
        self.fill = tuple(fill)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The window x1, y1, x2, y2 in pixels of the image, which may reach beyond it."""
        height, width = params["shape"][:2]
        canvas = (0, 0, width, height)
        if self.py_random.random() < 0.5:
            factor = self.py_random.uniform(1, LARGEST)
            more = [round(side * (factor - 1)) for side in (width, height)]
            left, top = (self.py_random.randint(0, one) for one in more)
            canvas = (-left, -top, width + more[0] - left, height + more[1] - top)
        boxes = np.asarray(data.get("bboxes", ()), np.float64)
        if not len(boxes):
            return {"window": canvas}
        return {"window": self.part(canvas, boxes[:, :4] * [width, height, width, height])}

    def part(self, canvas: tuple[int, int, int, int], boxes: np.ndarray) -> tuple[int, int, int, int]:
        """A part of the canvas that overlaps one of the boxes `(N, 4)`, in pixels, as a drawn overlap demands."""
        left, top = canvas[:2]
        sides = (canvas[2] - left, canvas[3] - top)
        while True:
            least = self.py_random.choice(OVERLAPS)
            if least == 1:
                return canvas
            for _ in range(ATTEMPTS):
                width, height = (max(1, int(side * self.py_random.uniform(SMALLEST, 1))) for side in sides)
                if not RATIOS[0] <= width / height <= RATIOS[1]:
                    continue
                x = left + self.py_random.randint(0, sides[0] - width)
                y = top + self.py_random.randint(0, sides[1] - height)
                window = (x, y, x + width, y + height)
                if fits(window, boxes, least):
                    return window

    def apply(self, img: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        """The window `(h, w, C)`, filled where it reaches beyond the image."""
        return cut(img, window, self.fill)

    def apply_to_mask(self, mask: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        """The window, 255 = ignore where it reaches beyond the image."""
        return cut(mask, window, (IGNORE_INDEX,))

    def apply_to_bboxes(
        self, bboxes: np.ndarray, window: tuple[int, int, int, int], shape: tuple[int, ...], **params: Any
    ) -> np.ndarray:
        """Boxes `(N, 4 + fields)` in fractions of the image, in fractions of the window."""
        moved = bboxes.astype(np.float64)
        x1, y1, x2, y2 = window
        moved[:, [0, 2]] = (moved[:, [0, 2]] * shape[1] - x1) / (x2 - x1)
        moved[:, [1, 3]] = (moved[:, [1, 3]] * shape[0] - y1) / (y2 - y1)
        return moved


def fits(window: tuple[int, int, int, int], boxes: np.ndarray, least: float) -> bool:
    """Whether the centre of a box is in the window, and the IoU of such a box with it is `least` or more."""
    corners = np.array(window, np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = boxes[((centres > corners[:2]) & (centres < corners[2:])).all(1)]
    shared = (np.minimum(inside[:, 2:], corners[2:]) - np.maximum(inside[:, :2], corners[:2])).clip(0).prod(1)
    total = (inside[:, 2:] - inside[:, :2]).prod(1) + (corners[2:] - corners[:2]).prod() - shared
    return bool(len(inside)) and float((shared / total).max()) >= least


def cut(image: np.ndarray, window: tuple[int, int, int, int], fill: tuple[float, ...]) -> np.ndarray:
    """The part of an image in a window, padded with a colour."""
    x1, y1, x2, y2 = window
    height, width = image.shape[:2]
    part = image[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)]
    borders = (max(0, -y1), max(0, y2 - height), max(0, -x1), max(0, x2 - width))
    made = cv2.copyMakeBorder(part, *borders, cv2.BORDER_CONSTANT, value=[round(one) for one in fill])
    return made.reshape(*made.shape[:2], *image.shape[2:])  # OpenCV drops a single channel
