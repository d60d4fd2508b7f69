"""Temperature scaling: one number that fits a network's confidence to its accuracy.

On Calibration of Modern Neural Networks (Guo et al. 2017, arXiv:1706.04599, section 4.2). Probabilities are the softmax
of logits / temperature, so labels stay as they are. The temperature is the one with the least cross-entropy on the
validation split. That loss is summed at a fixed row of temperatures while the split is scored, and interpolated between
them: no logits are kept, and sums over ranks are those of one process.
"""

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics import EpochLoss

TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-16, 17))
"""From 1/16 to 16, each 19 % above the one before."""
PIXELS = 256
"""Pixels of each image that count: neighbouring pixels say nearly the same."""


class TemperatureFit(EpochLoss):
    """The cross-entropy of a split at each of `TEMPERATURES`; the last term counts the errors."""

    def __init__(self, ignore_index: int) -> None:
        super().__init__((1.0,) * (len(TEMPERATURES) + 1))
        self.ignore_index = ignore_index

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add logits `(B, C)` with labels `(B,)`, or `PIXELS` random pixels of `(B, C, H, W)` and `(B, H, W)`."""
        if logits.dim() == 4:
            places = some_pixels(logits.shape[2] * logits.shape[3]).to(logits.device)
            logits = logits.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)
            target = target.flatten(1)[:, places].flatten()
        logits, valid = logits.float(), target != self.ignore_index
        target = target.where(valid, 0)
        true = logits.gather(1, target[:, None])[:, 0]
        terms = [(logits / t).logsumexp(1) - true / t for t in TEMPERATURES]
        terms.append((logits.argmax(1) != target).float())
        exact = self.totals.dtype
        super().update(torch.stack(terms).to(exact).where(valid, 0).sum(1), valid.sum().to(exact))

    def temperature(self) -> float:
        """The best temperature over all ranks, to four digits; 1 without a single error, from which none follows."""
        totals = np.array(self.over_all_ranks()).reshape(-1, 2)
        losses, errors = totals[:-1, 0], totals[-1, 0]
        if not errors or not np.isfinite(losses).all():
            return 1.0
        logs, best = np.log(TEMPERATURES), int(losses.argmin())
        near = np.linspace(logs[max(0, best - 1)], logs[min(len(logs) - 1, best + 1)], 2001)
        return float(f"{np.exp(near[cubic_spline(logs, losses, near).argmin()]):.4g}")


def cubic_spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The values that scipy's `CubicSpline(x, y)(at)` has, for evenly spaced x, with its default "not-a-knot" ends.

    Scipy itself is not used, because every training needs these values, and the import takes longer than a step.
    """
    step, n = x[1] - x[0], len(x)
    matrix, right = np.zeros((n, n)), np.zeros(n)
    for i in range(1, n - 1):
        matrix[i, i - 1 : i + 2] = 1, 4, 1
        right[i] = 6 * (y[i - 1] - 2 * y[i] + y[i + 1]) / step**2
    matrix[0, :3] = matrix[-1, -3:] = 1, -2, 1  # the third derivative is the same on both sides of the next point
    bends = np.linalg.solve(matrix, right)
    i = np.clip(((at - x[0]) / step).astype(int), 0, n - 2)
    right_part = (at - x[i]) / step
    left_part = 1 - right_part
    bent = (left_part**3 - left_part) * bends[i] + (right_part**3 - right_part) * bends[i + 1]
    return left_part * y[i] + right_part * y[i + 1] + bent * step**2 / 6


def some_pixels(number: int) -> Tensor:
    """`PIXELS` indices below `number`, drawn with replacement; the same whenever it is called."""
    return torch.randint(number, (PIXELS,), generator=torch.Generator().manual_seed(0))
