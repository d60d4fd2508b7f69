"""The part of a picture that a unit depends on, and what a deconvnet projects there."""

import numpy as np

from experiments.explaining.drawing import signed_picture
from experiments.explaining.receptive_fields import Theory

PAPER, GREY = 225, 128
"""Grey levels of what lies outside of a picture, and of a projection that is zero."""
STRONGEST = 99.5
"""Percentile of the absolute values of a projection that is drawn in full strength. A few pixels are far stronger than
all others, which would hardly be seen beside them."""


def projection_picture(values: np.ndarray) -> np.ndarray:
    """A projection `(C, H, W)` as a picture uint8 `(H, W, 3)` around grey."""
    sizes = np.abs(values)
    most = np.percentile(sizes[sizes > 0], STRONGEST) if sizes.any() else 1.0
    return signed_picture(values.clip(-most, most))


def box_of(theory: Theory, place: tuple[int, int], size: tuple[int, ...]) -> dict[str, int]:
    """First and last row and column of the theoretical field, or the whole picture if the field is larger.

    Args:
        size: of the picture, (H, W, ...). Fields at its border reach beyond it.
    """
    top, bottom, left, right = theory.box(*place)
    if bottom - top >= size[0] or right - left >= size[1]:
        top, bottom, left, right = 0, size[0] - 1, 0, size[1] - 1
    return {"top": top, "bottom": bottom, "left": left, "right": right}


def cut(image: np.ndarray, box: dict[str, int], outside: int) -> np.ndarray:
    """The part of a picture uint8 `(H, W, C)` in a box; pixels beyond the border have the grey level `outside`."""
    height, width = image.shape[:2]
    part = np.full((box["bottom"] - box["top"] + 1, box["right"] - box["left"] + 1, image.shape[2]), outside, np.uint8)
    top, left = max(0, box["top"]), max(0, box["left"])
    bottom, right = min(height, box["bottom"] + 1), min(width, box["right"] + 1)
    part[top - box["top"] : bottom - box["top"], left - box["left"] : right - box["left"]] = image[
        top:bottom, left:right
    ]
    return part
