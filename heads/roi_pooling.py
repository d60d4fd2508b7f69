"""The values of regions of a map: RoI max pooling (Girshick 2015, arXiv:1504.08083) and RoIAlign (He et al. 2017,
arXiv:1703.06870), both torchvision's.

Max pooling rounds a box to values of the map and divides it into bins, as the authors' code of Fast R-CNN does;
RoIAlign interpolates at 2x2 points in each bin. Strides and offsets are the backbone's and are not guessed from sizes.

torchvision's RoIAlign is slow on a CPU. There, PyTorch's embedding bag computes each bin as a weighted sum of 16 values
of the map; `python experiments/benchmarks/roi_align_speed.py` compares both.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from heads.box_head import exact

Pooling = Literal["max", "align"]


def regions_of(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes `(R_i, 4)` of each image, one image after the other: `(R, 5)`, the number of the image first."""
    numbers = torch.cat([one.new_full((len(one), 1), image) for image, one in enumerate(boxes)])
    return torch.cat([numbers, torch.cat(list(boxes))], 1)


def pool_regions(
    x: Tensor, regions: Tensor, side: int, stride: int, offset: float = 0.0, kind: Pooling = "max"
) -> Tensor:
    """The values of regions in a map, float32 `(R, C, side, side)`.

    Args:
        x: map `(B, C, h, w)`.
        regions: `(R, 5)`, see `regions_of`; boxes in pixels.
        side: bins along each side.
        stride: pixels per value of the map.
        offset: pixels by which the map is displaced.
        kind: "max" or "align".
    """
    x = exact(x)  # in half precision, boxes would be rounded by up to two pixels
    moved = (regions - regions.new_tensor([0, offset, offset, offset, offset])).to(x.dtype)
    if kind == "max":
        return roi_pool(x, moved, side, 1 / stride)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return align_on_cpu(x, moved, side, 1 / stride)
    return roi_align(x, moved, side, 1 / stride, sampling_ratio=2)


def align_on_cpu(x: Tensor, regions: Tensor, side: int, scale: float) -> Tensor:
    """torchvision's `roi_align` with `sampling_ratio=2`.

    A bin averages two points in each direction, and each point lies between two values of the map in each direction.
    """
    _, channels, height, width = x.shape
    points = (torch.arange(2 * side, dtype=x.dtype) + 0.5) / (2 * side)
    weights, places = [], []
    for first, last, size in ((2, 4, height), (1, 3, width)):
        start, end = regions[:, first, None] * scale, regions[:, last, None] * scale
        at = start + (end - start).clamp(min=1) * points
        inside = (at >= -1) & (at <= size)
        at = at.nan_to_num().clamp(0, size - 1)  # boxes that are not finite pool zeros
        low = at.floor()
        parts = torch.stack([1 - (at - low), at - low], 2) * (inside[:, :, None] / 2)
        near = torch.stack([low, (low + 1).clamp(max=size - 1)], 2).int()
        weights.append(parts.unflatten(1, (side, 2)).flatten(2))  # (R, side, 4)
        places.append(near.unflatten(1, (side, 2)).flatten(2))
    rows = regions[:, 0].int()[:, None, None] * height + places[0]
    values = rows[:, :, None, :, None] * width + places[1][:, None, :, None, :]  # (R, side, side, 4, 4)
    shares = weights[0][:, :, None, :, None] * weights[1][:, None, :, None, :]
    pooled = F.embedding_bag(
        values.flatten(3).flatten(0, 2),
        x.permute(0, 2, 3, 1).reshape(-1, channels),
        per_sample_weights=shares.flatten(3).flatten(0, 2),
        mode="sum",
    )
    return pooled.view(-1, side, side, channels).permute(0, 3, 1, 2)
