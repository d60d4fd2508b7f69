"""Colours of classes, for data sets that have none of their own."""

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""RGB in 0..255."""


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """`count` RGB colours: black, then hues that advance by the golden angle at three brightnesses in turn."""
    hues = np.arange(count - 1) * 0.618034 % 1 * 180
    values = np.resize([255, 190, 140], count - 1)
    hsv = np.stack([hues, np.full(count - 1, 190), values], axis=-1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return ((0, 0, 0), *((int(r), int(g), int(b)) for r, g, b in rgb))
