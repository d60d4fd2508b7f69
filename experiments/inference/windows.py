"""Prediction in overlapping windows, for images too large to predict whole.

If the overlap covers the network's receptive field twice, every pixel is taken from a window that holds everything it
depends on, so that the result equals whole-image prediction (to about 1e-5). Otherwise windows are blended linearly.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from experiments.analysis.receptive_field import traced

LEAST_WEIGHT = 1e-9
"""Weight of pixels at a window's border: negligible beside other windows, but above 0 where no other window reaches."""
TRACED_SIDE = 256
"""Side in pixels of the image that receptive fields are traced with; fields do not depend on it."""


@dataclass(frozen=True)
class Reach:
    """How far from a pixel its score depends on the image.

    Args:
        radius: in pixels; None if the score depends on the whole image.
        why: the reason if it does.
    """

    radius: int | None
    why: str = ""


def reach_of(network: nn.Module, in_channels: int = 3) -> Reach:
    """The reach of a segmentation network, traced on shapes alone."""
    tracer, field = traced(network, (TRACED_SIDE, TRACED_SIDE), in_channels)
    if field is None:
        return Reach(None, "attention mixes the whole image")
    if tracer.global_pooling or field.whole:
        return Reach(None, "a layer averages over the whole image")
    stride = max((layer.field.stride for layer in tracer.layers), default=1)
    return Reach(int(max(-field.first, field.last) + stride))


def windows(size: tuple[int, int], window: tuple[int, int], overlap: int, grid: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the windows that cover an image.

    Args:
        size: of the image, (H, W) in pixels; also of `window`.
        overlap: the least number of pixels that neighbouring windows share.
        grid: windows start at multiples of this, the network's largest stride, so that their maps lie on one grid.
    """
    for top in starts(size[0], window[0], overlap, grid):
        for left in starts(size[1], window[1], overlap, grid):
            yield slice(top, min(top + window[0], size[0])), slice(left, min(left + window[1], size[1]))


def starts(length: int, window: int, overlap: int, grid: int) -> list[int]:
    """Where windows start along one axis; the last one reaches the end."""
    if window >= length:
        return [0]
    step = (window - overlap) // grid * grid
    if step < 1:
        raise ValueError(
            f"a window of {window} pixels with an overlap of {overlap} leaves less than the network's stride of {grid} "
            "between windows; use a larger --window or a smaller --overlap"
        )
    return list(range(0, length - window + step, step))


def weights(size: tuple[int, int], rows: slice, columns: slice, radius: int) -> np.ndarray:
    """The weight of each pixel of a window, float32 `(h, w)`.

    It grows with the distance from those borders of the window that are not borders of the image, and counts only
    beyond `radius`.
    """
    sides = []
    for length, part in zip(size, (rows, columns), strict=True):
        position = np.arange(part.start, part.stop)
        before = position - part.start + 1 if part.start > 0 else np.full(len(position), np.inf)
        after = part.stop - position if part.stop < length else np.full(len(position), np.inf)
        sides.append(np.minimum(before, after))
    distance = np.minimum(np.minimum(sides[0][:, None], sides[1][None]), 1e6)
    return np.maximum(distance - radius, LEAST_WEIGHT).astype(np.float32)


def windowed_logits(
    logits_of: Callable[[np.ndarray], Tensor],
    image: np.ndarray,
    window: tuple[int, int],
    overlap: int,
    radius: int,
    grid: int,
) -> Tensor:
    """Logits float32 `(1, C, H, W)` of an image uint8 `(H, W, 3)`, averaged over its windows.

    Args:
        logits_of: the network: image uint8 `(h, w, 3)` -> logits `(1, C, h, w)`.
        radius: pixels of each window's inner borders that do not count if another window covers them; 0 blends
            linearly.
    """
    size = (image.shape[0], image.shape[1])
    total: Tensor | None = None
    weight = torch.zeros(size)
    for rows, columns in windows(size, window, overlap, grid):
        logits = logits_of(image[rows, columns])
        part = torch.from_numpy(weights(size, rows, columns, radius))
        if total is None:
            total = torch.zeros(1, logits.shape[1], *size)
        total[..., rows, columns] += logits * part
        weight[rows, columns] += part
    assert total is not None
    return total / weight
