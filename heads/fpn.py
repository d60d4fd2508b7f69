"""Panoptic Feature Pyramid Networks, semantic branch. Kirillov, Girshick, He, Dollár 2019, arXiv:1901.02446.

The pyramid is that of Lin et al. 2016 (arXiv:1612.03144): maps at stride 4 and coarser go to 256 channels by 1x1
convolutions, coarse maps are upsampled by nearest neighbour and added to finer ones, and a 3x3 convolution ends each
level. The semantic branch upsamples every level to the finest in steps of 3x3 convolution to 128 channels, group norm,
ReLU and bilinear upsampling, sums the levels and scores the sum. Differences from the paper: maps need not double in
size exactly; at output stride 8 or 16, levels of the same stride take the same steps; if all maps of a backbone are
finer than stride 4, only the last is read.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from heads.head import Head, last

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
        used = [i for i, reduction in enumerate(reductions) if reduction >= FINEST] or [last(reductions)]
        super().__init__(reductions, used)
        if width % 32:
            raise ValueError(f"fpn's width is {width}; it must be a multiple of 32, the groups of its norms")
        self.laterals = nn.ModuleList(nn.Conv2d(channels[i], pyramid_width, 1) for i in used)
        self.outputs = nn.ModuleList(nn.Conv2d(pyramid_width, pyramid_width, 3, padding=1) for _ in used)
        # Levels that are finer than the next one. A coarser level is upsampled to each in turn.
        strides = [reductions[i] for i in used]
        finer = [i for i, (fine, coarse) in enumerate(pairwise(strides)) if fine < coarse]
        self.branches = nn.ModuleList(
            SemanticBranch(pyramid_width, width, [i for i in reversed(finer) if i < level])
            for level in range(len(used))
        )
        self.score = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        levels = [lateral(features[i]) for lateral, i in zip(self.laterals, self.levels, strict=True)]
        sizes = [x.shape[2:] for x in levels]

        def upsample(x: Tensor, source: int, target: int, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
            return self.fit(x, self.levels[source], self.levels[target], sizes[target], mode=mode)

        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + upsample(levels[i + 1], i + 1, i, "nearest")
        levels = [output(x) for output, x in zip(self.outputs, levels, strict=True)]
        first, *others = (
            branch(x, i, upsample) for i, (branch, x) in enumerate(zip(self.branches, levels, strict=True))
        )
        return self.score(sum(others, first))


class SemanticBranch(nn.Module):
    """Upsamples one pyramid level to the finest level by way of the levels in `path`, coarse to fine.

    With an empty path it is convolved once and only fitted to the finest level, from which it may differ by a border.
    """

    def __init__(self, in_channels: int, width: int, path: Sequence[int]) -> None:
        super().__init__()
        self.path = path or (0,)
        widths = [in_channels, *(width for _ in self.path)]
        self.steps = nn.ModuleList(conv_gn_relu(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor, level: int, upsample: Callable[[Tensor, int, int], Tensor]) -> Tensor:
        for step, target in zip(self.steps, self.path, strict=True):
            x = upsample(step(x), level, target)
            level = target
        return x


def conv_gn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(32, out_channels),
        nn.ReLU(inplace=True),
    )
