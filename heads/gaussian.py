"""The Gaussian kernel of position alone, computed exactly: a banded matrix along each side of the image."""

import math

import torch
from torch import Tensor

from heads.permutohedral import ALL, Normalization, normalizers, sum_rows

REACH = 5  # radius in standard deviations; the weight beyond it is 6e-7 of the whole
INDEX_ENTRIES = 2**20  # maximum size of the index along rows; it limits how many image rows are filtered at a time


class SpatialGaussian:
    """The normalised Gaussian filter exp(-|p_i - p_j|^2 / 2 sigma^2) over the pixels of an image.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        sigma: standard deviation in pixels.
        normalization: as in `Permutohedral`. Normalising along each side in turn gives the same result.
        like: a tensor with the dtype and device of the values.
    """

    def __init__(self, height: int, width: int, sigma: float, normalization: Normalization, like: Tensor) -> None:
        self.height = height
        self.num_rows = height * width
        """Number of rows of what `spread` returns, as for the lattice."""
        self.columns, self.column_weights = _band(height, sigma, normalization, like)
        index, weights = _band(width, sigma, normalization, like)
        rows = max(1, min(height, INDEX_ENTRIES // index.numel()))
        starts = torch.arange(rows, dtype=index.dtype, device=index.device) * width
        self.rows = (starts[:, None, None] + index).flatten(0, 1)
        self.row_weights = tuple(weight.repeat(rows, 1) for weight in weights)

    def spread(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Values (H * W, C) filtered along the columns."""
        table = values.reshape(self.height, -1)
        return sum_rows(table, self.columns, self.column_weights[reverse]).view(values.shape)

    def gather(self, values: Tensor, points: slice = ALL, reverse: bool = False) -> Tensor:
        """Values filtered along the rows, at a slice of whole rows."""
        parts = values[points].split(len(self.rows))
        sums = [sum_rows(x, self.rows[: len(x)], self.row_weights[reverse][: len(x)]) for x in parts]
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    def filter(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Values (H * W, C) -> (H * W, C); `reverse` is the transpose."""
        return self.gather(self.spread(values, reverse), reverse=reverse)


def _band(
    length: int, sigma: float, normalization: Normalization, like: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Indices (length, 2 * radius + 1) around each position, and their weights in the filter and in its transpose."""
    radius = min(math.ceil(REACH * sigma), length - 1)
    offset = torch.arange(-radius, radius + 1, device=like.device)
    index = torch.arange(length, device=like.device)[:, None] + offset
    weight = torch.exp(-0.5 * (offset.to(like.dtype) / sigma) ** 2) * ((index >= 0) & (index < length))
    index = index.clamp(0, length - 1)
    before, after = normalizers(weight.sum(1, keepdim=True), normalization)
    return index.int(), (after * weight * before[index, 0], before * weight * after[index, 0])
