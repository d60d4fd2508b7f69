"""The Gaussian kernel of position alone, exact: a banded matrix along each side of the image."""

import math

import torch
from torch import Tensor

from heads.permutohedral import sum_rows

REACH = 5  # in standard deviations; the weight beyond is 6e-7 of the whole
INDEX_ENTRIES = 2**20  # of the index along rows, which is built for as many image rows at a time


class SpatialGaussian:
    """The Gaussian filter exp(-|p_i - p_j|^2 / 2 sigma^2) over the pixels of an image.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        sigma: standard deviation, pixels.
        like: a tensor of the values' dtype and device.
    """

    def __init__(self, height: int, width: int, sigma: float, like: Tensor) -> None:
        self.height, self.width = height, width
        self.columns, self.column_weight = _band(height, sigma, like)
        index, weight = _band(width, sigma, like)
        block = max(1, min(height, INDEX_ENTRIES // index.numel()))
        starts = torch.arange(block, dtype=index.dtype, device=index.device) * width
        self.rows = (starts[:, None, None] + index).flatten(0, 1)
        self.row_weight = weight.repeat(block, 1)

    def filter(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Values (H * W, C) -> (H * W, C); the kernel is its own transpose, so `reverse` changes nothing."""
        x = sum_rows(values.reshape(self.height, -1), self.columns, self.column_weight).view_as(values)
        blocks = x.split(len(self.rows))
        return torch.cat([sum_rows(b, self.rows[: len(b)], self.row_weight[: len(b)]) for b in blocks])


def _band(length: int, sigma: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and weights (length, 2 * radius + 1) of the Gaussian around each place; outside there is nothing."""
    radius = min(math.ceil(REACH * sigma), length - 1)
    offset = torch.arange(-radius, radius + 1, device=like.device)
    index = torch.arange(length, device=like.device)[:, None] + offset
    inside = (index >= 0) & (index < length)
    weight = torch.exp(-0.5 * (offset.to(like.dtype) / sigma) ** 2) * inside
    return index.clamp(0, length - 1).int(), weight
