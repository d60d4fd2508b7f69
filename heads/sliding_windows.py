"""Sliding windows: boxes of several sizes and shapes at regular places, the proposals that were used before others.

Sides fall by the square root of two from the image's longer side to an eighth of it; each comes in three shapes and
moves by a quarter of itself. They are ordered like the boxes of selective search: by their place from the largest to
the smallest, times a random number.
"""

import numpy as np

SIZES = tuple(2 ** (-step / 2) for step in range(7))
"""Sides of the square windows, in longer sides of the image."""
RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the windows of one size, which have the same area."""
STEP = 0.25
"""Distance of two windows, in sides of a window."""


def sliding_windows(height: int, width: int, most: int = 2000, seed: int = 0) -> np.ndarray:
    """The first windows of an image, at most `most`: float32 `(N, 4)` in pixels, within the image."""
    found = [np.array([[0, 0, width, height]], np.float32)]
    for size in SIZES:
        for ratio in RATIOS:
            side = size * max(height, width)
            h, w = min(float(height), side * ratio**0.5), min(float(width), side / ratio**0.5)
            if min(h, w) < 1:
                continue
            rows, columns = (
                np.linspace(0, room, 1 + int(np.ceil(room / (STEP * step))))
                for room, step in ((height - h, h), (width - w, w))
            )
            y, x = (one.ravel() for one in np.meshgrid(rows, columns, indexing="ij"))
            found.append(np.stack([x, y, x + w, y + h], 1).astype(np.float32))
    boxes = np.concatenate(found).clip(0, np.array([width, height] * 2, np.float32))
    boxes = boxes[np.sort(np.unique(boxes, axis=0, return_index=True)[1])]
    order = np.argsort(np.random.default_rng(seed).random(len(boxes)) * np.arange(1, len(boxes) + 1), kind="stable")
    return boxes[order[:most]]
