"""The images that a network sees of one picture: at several scales, mirrored, whole or as several crops."""

from collections.abc import Iterator
from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np

from datamodules.augmentation import compose
from datamodules.size_rules import SizeRule

MARGIN = 0.875
"""Fraction of the sides of the resized image that a crop takes, as in `datamodules/crops.py`."""


class View(NamedTuple):
    """One image uint8 `(h, w, 3)`, and whether it is mirrored."""

    image: np.ndarray
    mirrored: bool


def views_of(
    image: np.ndarray, rule: SizeRule, scales: tuple[float, ...], flip: bool, crops: int = 1, whole: bool = False
) -> Iterator[View]:
    """The views of an image uint8 `(H, W, 3)`.

    Args:
        scales: multiples of the size after the size rule.
        flip: each view is followed by its mirror image.
        crops: 1 for the image after the size rule; 5 for the corners and the centre of a larger one; 10 for these and
            their mirror images, as AlexNet was tested (Krizhevsky et al. 2012, section 4.1).
        whole: the image is resized as the size rule says, but not cropped.
    """
    prepared = rule.apply(image) if crops == 1 and not whole else uncropped(image, rule, margin=crops > 1)
    for scale in scales:
        scaled = resized(prepared, scale)
        for part in [scaled] if crops == 1 else corners_and_centre(scaled, rule.size):
            yield View(part, False)
            if flip or crops == 10:
                yield View(np.ascontiguousarray(part[:, ::-1]), True)


def uncropped(image: np.ndarray, rule: SizeRule, *, margin: bool) -> np.ndarray:
    """The image as the size rule resizes it; with `margin`, at 8/7 of the size if it is stretched to that size."""
    if rule.kind == "stretch":
        height, width = (round(side / MARGIN) if margin else side for side in rule.size)
        return compose([A.Resize(height, width, area_for_downscale="image")])(image=image)["image"]
    return compose(rule.transforms()[:1])(image=image)["image"] if rule.kind == "centre_crop" else image


def corners_and_centre(image: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Five crops of `size` (h, w) of an image uint8 `(H, W, 3)` that is at least as large."""
    bottom, right = image.shape[0] - size[0], image.shape[1] - size[1]
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    return [np.ascontiguousarray(image[y : y + size[0], x : x + size[1]]) for y, x in places]


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    """An image uint8 `(H, W, C)` at `scale` times its size."""
    if scale == 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    view = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return view.reshape(*size[::-1], image.shape[2])  # OpenCV drops a single channel
