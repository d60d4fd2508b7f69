"""Fully Convolutional Networks for Semantic Segmentation. Long, Shelhamer, Darrell 2014, arXiv:1411.4038.

A 1x1 score layer on each of the maps at strides 32, 16 and 8; coarse scores are doubled and added to finer ones, the
sum is enlarged eightfold. All enlarging is by transposed convolutions that start as bilinear interpolation and learn
on. Differences from the paper: maps stay aligned by symmetric padding, so the 100-pixel border and the crops after it
are not needed; sizes that do not double exactly are interpolated to the map they join. At output stride 16 or 8 maps
that are no longer coarser than the next are added as they are.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.head import Head, level


def bilinear_upsampling(channels: int, factor: int) -> nn.Module:
    """A transposed convolution, all channels to all, that starts as bilinear enlargement by an even `factor`.

    `(B, C, H, W)` -> `(B, C, factor * H, factor * W)`. A factor of 1 is the identity.
    """
    if factor == 1:
        return nn.Identity()
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, padding=factor // 2, bias=False)
    distance = (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    triangle = (1 - distance).outer(1 - distance)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels)[:, :, None, None] * triangle)
    return layer


class FCN8s(Head):
    """Skip sums over the maps at strides 8, 16 and 32; logits at the image's size."""

    needs = (8, 16, 32)
    backbone_knobs = {"fully_convolutional": True}

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], num_classes: int) -> None:
        super().__init__()
        found = [level(reductions, stride) for stride in (32, 16, 8)]
        self.levels = [index for index in found if index is not None]
        self.scores = nn.ModuleList(nn.Conv2d(channels[index], num_classes, 1) for index in self.levels)
        for score in self.scores[1:]:  # the paper starts the skips at zero: they add to a net that works
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)
        strides = [*(reductions[index] for index in self.levels), 1]
        self.ups = nn.ModuleList(
            bilinear_upsampling(num_classes, coarse // fine) for coarse, fine in pairwise(strides)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [features[index] for index in self.levels]
        total = self.scores[0](maps[0])
        for finer, score, up in zip(maps[1:], self.scores[1:], self.ups, strict=False):
            total = up(total)
            if total.shape[2:] != finer.shape[2:]:
                total = F.interpolate(total, finer.shape[2:], mode="bilinear", align_corners=False)
            total = total + score(finer)
        return self.ups[-1](total)
