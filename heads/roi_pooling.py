"""The values of regions of a map: RoI max pooling (Girshick 2015, arXiv:1504.08083) and RoIAlign (He et al. 2017,
arXiv:1703.06870), both torchvision's.

Max pooling rounds a box to values of the map and divides it into bins, as the authors' code of Fast R-CNN does;
RoIAlign interpolates at 2x2 points in each bin. Strides and offsets are the backbone's and are not guessed from sizes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
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
    return roi_align(x, moved, side, 1 / stride, sampling_ratio=2)
