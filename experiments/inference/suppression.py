"""From the output of an exported detector to objects, in numpy alone, as a program that runs the file has to do it."""

import numpy as np

CANDIDATES = 5000
"""Boxes of the highest scores that are looked at."""


def suppress(
    found: np.ndarray, size: tuple[int, int], *, threshold: float, overlap: float, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes `(K, 4)`, scores `(K,)` and classes `(K,)` of an image, by falling score.

    Args:
        found: of one image, `(N, 4 + C)`: x1, y1, x2, y2 in pixels, then the score of each class.
        size: H and W of the image; boxes are cut at its border.
        threshold: lower scores are dropped.
        overlap: boxes whose IoU with one of the same class and a higher score is above this are dropped.
        most: objects at most.
    """
    rows, labels = np.nonzero(found[:, 4:] > threshold)
    scores = found[rows, 4 + labels]
    order = np.argsort(-scores, kind="stable")[:CANDIDATES]
    scores, labels = scores[order], labels[order]
    boxes = np.clip(found[rows[order], :4], 0, [size[1], size[0], size[1], size[0]])
    left = np.arange(len(order))
    kept: list[int] = []
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[(labels[left] != labels[best]) | (overlaps(boxes[best], boxes[left]) <= overlap)]
    return boxes[kept], scores[kept], labels[kept]


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box `(4,)` with others `(N, 4)`."""
    sides = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0)
    shared = sides.prod(1)
    total = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return shared / np.maximum(total, 1e-12)
