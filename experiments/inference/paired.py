"""Two networks on the same pictures: the difference of a score, its bootstrap interval, and a sign test."""

from typing import Any

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 2000
CONFIDENCE = 0.95


def paired_scores(ours: np.ndarray, theirs: np.ndarray, task: str, seed: int = 0) -> dict[str, Any]:
    """What the first network has over the second.

    Args:
        ours, theirs: counts of each picture, int64 `(N, 3, C)`: right, in the truth, predicted; in the same order. In
            classification C is 1.
        task: the score is mIoU over all pixels in segmentation, top-1 accuracy in classification.

    Returns:
        "difference" of the score over all pictures, its percentile bootstrap interval "low" to "high" (pictures are
        drawn with replacement), and the two-sided "sign_test_p" of better against worse pictures.
    """
    draws = np.random.default_rng(seed).multinomial(len(ours), np.full(len(ours), 1 / len(ours)), RESAMPLES)
    everything = np.ones((1, len(ours)))
    difference = float((score_of(ours, everything, task) - score_of(theirs, everything, task))[0])
    spread = score_of(ours, draws, task) - score_of(theirs, draws, task)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(spread, [tail, 100 - tail])
    each = picture_scores(ours, task) - picture_scores(theirs, task)
    better, worse = int((each > 0).sum()), int((each < 0).sum())
    test = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "confidence": CONFIDENCE,
        "better": better,
        "worse": worse,
        "equal": len(ours) - better - worse,
        "sign_test_p": float(test),
    }


def score_of(counts: np.ndarray, weights: np.ndarray, task: str) -> np.ndarray:
    """The score `(B,)` of the pictures counted as often as `weights` `(B, N)` says."""
    right, truth, predicted = (weights @ counts[:, kind].astype(float) for kind in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        if task == "classification":
            return right[:, 0] / truth[:, 0]
        return np.nanmean(right / (truth + predicted - right), axis=1)


def picture_scores(counts: np.ndarray, task: str) -> np.ndarray:
    """The score of each picture by itself `(N,)`; NaN for one without valid pixels."""
    return np.concatenate([score_of(one[None], np.ones((1, 1)), task) if one[1].any() else [np.nan] for one in counts])
