"""Counts of one picture that the scores of a split are made of; they add up over pictures."""

from dataclasses import dataclass, fields
from typing import Self

import cv2
import numpy as np

LEVELS = 1000
"""Confidences are counted in this many equal steps of [0, 1]."""
BOUNDARY_SHARE = 0.02
"""Width of the boundary region of boundary IoU, in diagonals of the image (Cheng et al. 2021, arXiv:2103.16562)."""


@dataclass
class Counts:
    """Counts over pixels (segmentation) or pictures (classification).

    Args:
        matrix: [truth, prediction], int64 `(C, C)`.
        right, total: int64 `(LEVELS,)`, by confidence: how many are right, and how many there are.
        boundary: int64 `(3, C)`: intersection, prediction and truth of the boundary regions; zeros in classification.
        answered: [truth, prediction] of those that are confident enough for `--abstain`, int64 `(C, C)`.
        top5: how many pictures have their class among the five most likely; 0 in segmentation.
    """

    matrix: np.ndarray
    right: np.ndarray
    total: np.ndarray
    boundary: np.ndarray
    answered: np.ndarray
    top5: int = 0

    def __iadd__(self, other: Self) -> Self:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        return self

    @classmethod
    def none(cls, num_classes: int) -> Self:
        """No pixel yet."""
        levels = np.zeros(LEVELS, np.int64)
        matrix = np.zeros((num_classes, num_classes), np.int64)
        return cls(matrix, levels, levels.copy(), np.zeros((3, num_classes), np.int64), matrix.copy())


def count_pixels(probabilities: np.ndarray, truth: np.ndarray, ignore_index: int, abstain: float = 0.0) -> Counts:
    """Counts of one segmented picture.

    Args:
        probabilities: float32 `(C, H, W)`.
        truth: classes `(H, W)`; pixels of `ignore_index` count nowhere.
        abstain: confidence below which a pixel is not answered.
    """
    classes = len(probabilities)
    labels, confidence = probabilities.argmax(0), probabilities.max(0)
    valid = truth != ignore_index
    cells = truth[valid].astype(np.int64) * classes + labels[valid]
    counts = Counts.none(classes)
    counts.matrix = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    sure = confidence[valid] >= abstain
    counts.answered = (
        counts.matrix if sure.all() else np.bincount(cells[sure], minlength=classes**2).reshape(classes, classes)
    )
    counts.right, counts.total = by_confidence(confidence[valid], (labels == truth)[valid])
    counts.boundary = boundary_counts(labels, truth, valid, classes)
    return counts


def count_picture(probabilities: np.ndarray, truth: int, abstain: float = 0.0) -> Counts:
    """Counts of one classified picture, from its probabilities `(C,)`."""
    classes = len(probabilities)
    label = int(probabilities.argmax())
    counts = Counts.none(classes)
    counts.matrix[truth, label] = 1
    counts.answered[truth, label] = probabilities.max() >= abstain
    counts.right, counts.total = by_confidence(probabilities.max()[None], np.array([label == truth]))
    counts.top5 = int((probabilities > probabilities[truth]).sum() < 5)
    return counts


def by_confidence(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many are right, and how many there are, at each level of confidence."""
    level = np.minimum((confidence * LEVELS).astype(np.int64), LEVELS - 1)
    return np.bincount(level[right], minlength=LEVELS), np.bincount(level, minlength=LEVELS)


def boundary_counts(labels: np.ndarray, truth: np.ndarray, valid: np.ndarray, classes: int) -> np.ndarray:
    """Sizes of intersection, prediction and truth of each class's boundary region, int64 `(3, C)`.

    The boundary region of a mask holds its pixels that are at most 2 % of the image's diagonal from its contour.
    """
    reach = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
    counts = np.zeros((3, classes), np.int64)
    for one in np.union1d(labels[valid], truth[valid]).astype(int).tolist():
        ours, theirs = (inner_boundary((map_ == one) & valid, reach) for map_ in (labels, truth))
        counts[:, one] = (ours & theirs).sum(), ours.sum(), theirs.sum()
    return counts


def inner_boundary(mask: np.ndarray, reach: int) -> np.ndarray:
    """The pixels of a mask bool `(H, W)` that are at most `reach` pixels from outside it; outside the image counts."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
    return mask & ~inside.astype(bool)
