"""Scores from counts: accuracy, IoU, boundary IoU, calibration, accuracy against coverage."""

from typing import Any

import numpy as np

from experiments.inference.counts import LEVELS, Counts

BINS = 15
"""Number of confidence bins of the calibration error (Guo et al. 2017, arXiv:1706.04599)."""
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def iou(matrix: np.ndarray) -> np.ndarray:
    """IoU of each class from counts [truth, prediction] `(..., C, C)`; NaN for a class that occurs in neither."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    with np.errstate(invalid="ignore"):
        return hits / (matrix.sum(-1) + matrix.sum(-2) - hits)


def summary(counts: Counts, task: str) -> dict[str, float | None]:
    """The scores of a split, in [0, 1]."""
    matrix = counts.matrix
    accuracy = ratio(np.trace(matrix), matrix.sum())
    common = {"ece": calibration_error(counts)}
    if task == "classification":
        top5 = {"top5": ratio(counts.top5, matrix.sum())} if len(matrix) > 5 else {}
        recalls = [ratio(matrix[i, i], matrix[i].sum()) for i in range(len(matrix)) if matrix[i].sum()]
        return {"top1": accuracy} | top5 | {"mean_class_accuracy": mean(recalls)} | common
    return {
        "miou": mean([value for value in iou(matrix) if np.isfinite(value)]),
        "pixel_accuracy": accuracy,
        "boundary_iou": mean([value for value in boundary_iou(counts) if np.isfinite(value)]),
        **common,
    }


def answered(counts: Counts, task: str, abstain: float) -> dict[str, float | None]:
    """What `--abstain` leaves: the fraction that is answered, and the scores of these answers, in [0, 1]."""
    matrix = counts.answered
    found = {
        "confidence": abstain,
        "coverage": ratio(matrix.sum(), counts.matrix.sum()),
        "accuracy": ratio(np.trace(matrix), matrix.sum()),
    }
    if task == "segmentation":
        found["miou"] = mean([value for value in iou(matrix) if np.isfinite(value)])
    return found


def per_class(counts: Counts, task: str, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each class: its share of the truth, precision, recall and, in segmentation, IoU and boundary IoU."""
    matrix = counts.matrix
    ious, boundaries = iou(matrix), boundary_iou(counts)
    rows = []
    for i, name in enumerate(class_names):
        row: dict[str, Any] = {
            "class": name,
            "share": ratio(matrix[i].sum(), matrix.sum()),
            "precision": ratio(matrix[i, i], matrix[:, i].sum()),
            "recall": ratio(matrix[i, i], matrix[i].sum()),
        }
        if task == "segmentation":
            row |= {"iou": finite(ious[i]), "boundary_iou": finite(boundaries[i])}
        rows.append(row)
    return rows


def boundary_iou(counts: Counts) -> np.ndarray:
    """Boundary IoU of each class; NaN for a class that occurs in neither truth nor prediction."""
    both, ours, theirs = counts.boundary.astype(float)
    with np.errstate(invalid="ignore"):
        return both / (ours + theirs - both)


def reliability(counts: Counts) -> list[dict[str, float | int]]:
    """Mean confidence and accuracy in each of `BINS` equal intervals of confidence that holds anything."""
    middle = (np.arange(LEVELS) + 0.5) / LEVELS
    # A level belongs to the interval that holds its middle.
    interval = np.minimum((middle * BINS).astype(int), BINS - 1)
    rows = []
    for one in range(BINS):
        inside = interval == one
        total = int(counts.total[inside].sum())
        if total:
            confidence = float((middle * counts.total)[inside].sum() / total)
            rows.append(
                {"confidence": confidence, "accuracy": float(counts.right[inside].sum() / total), "count": total}
            )
    return rows


def calibration_error(counts: Counts) -> float | None:
    """Expected calibration error: the mean distance of accuracy from confidence over the intervals, by their counts."""
    rows = reliability(counts)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / total if total else None


def coverage_curve(counts: Counts) -> list[dict[str, float]]:
    """Accuracy of the most confident part of all pixels or pictures, and the confidence where that part ends."""
    total, right = np.cumsum(counts.total[::-1]), np.cumsum(counts.right[::-1])
    rows = []
    for coverage in COVERAGES:
        if not total[-1]:
            continue
        place = int(np.searchsorted(total, coverage * total[-1]))
        threshold = (LEVELS - 1 - place) / LEVELS
        rows.append(
            {
                "coverage": float(total[place] / total[-1]),
                "accuracy": float(right[place] / total[place]),
                "threshold": threshold,
            }
        )
    return rows


def ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
