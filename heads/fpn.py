"""Panoptic Feature Pyramid Networks, semantic branch. Kirillov, Girshick, He, Dollár 2019, arXiv:1901.02446.

The pyramid is that of Lin et al. 2016 (arXiv:1612.03144): maps at stride 4 and coarser go to 256 channels by 1x1
convolutions, coarse is added to fine by nearest-neighbour enlargement, and a 3x3 convolution ends each level. The
semantic branch brings every level to the finest by steps of 3x3 convolution to 128 channels, group norm, ReLU and
bilinear enlargement, sums them and scores the sum. Differences from the paper: enlarging is to the size of the next
finer map, so sizes need not double; at output stride 8 or 16 levels of one size share a step; a backbone whose maps are
all finer than stride 4 gives its last alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from heads.head import Head

FINEST = 4


class FPN(Head):
    """Top-down pyramid and the sum of its levels; logits at stride 4.

    Args:
        pyramid_width: channels of the pyramid.
        width: channels of the semantic branch, a multiple of 32 (the groups of its norms).
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        pyramid_width: int = 256,
        width: int = 128,
    ) -> None:
        super().__init__()
        if width % 32:
            raise ValueError(f"fpn's width is {width}; it must be a multiple of 32, the groups of its norms")
        used = [i for i, reduction in enumerate(reductions) if reduction >= FINEST] or [len(reductions) - 1]
        self.first = used[0]
        self.laterals = nn.ModuleList(nn.Conv2d(channels[i], pyramid_width, 1) for i in used)
        self.outputs = nn.ModuleList(nn.Conv2d(pyramid_width, pyramid_width, 3, padding=1) for _ in used)
        # The levels that the next one is coarser than: where a coarse level's way to the finest makes a step.
        strides = [reductions[i] for i in used]
        finer = [i for i, (fine, coarse) in enumerate(pairwise(strides)) if fine < coarse]
        self.branches = nn.ModuleList(
            SemanticBranch(pyramid_width, width, [i for i in reversed(finer) if i < level])
            for level in range(len(used))
        )
        self.score = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        levels = [lateral(x) for lateral, x in zip(self.laterals, features[self.first :], strict=True)]
        sizes = [x.shape[2:] for x in levels]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], sizes[i], mode="nearest")
        levels = [output(x) for output, x in zip(self.outputs, levels, strict=True)]
        first, *others = (branch(x, sizes) for branch, x in zip(self.branches, levels, strict=True))
        return self.score(sum(others, first))


class SemanticBranch(nn.Module):
    """One level of the pyramid brought to the finest level's size, by way of the levels in `way`, coarse to fine.

    A level without a way is convolved once where it is; it may still be larger or smaller than the finest by a border.
    """

    def __init__(self, in_channels: int, width: int, way: Sequence[int]) -> None:
        super().__init__()
        self.way = way
        widths = [in_channels, *(width for _ in range(max(1, len(way))))]
        self.steps = nn.ModuleList(conv_gn_relu(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        for step, i in zip(self.steps, self.way or (0,), strict=True):
            x = step(x)
            if x.shape[2:] != sizes[i]:
                x = F.interpolate(x, list(sizes[i]), mode="bilinear", align_corners=False)
        return x


def conv_gn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(32, out_channels),
        nn.ReLU(inplace=True),
    )
