"""Atrous spatial pyramid pooling with the image's average as one branch (arXiv:1706.05587, section 3.3).

Shared by DeepLabv3, whose branches are full 3x3 convolutions, and DeepLabv3+, whose branches are separable.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.conv_norm import conv_bn_relu, norm_pooled


class ASPP(nn.Module):
    """`(B, C, H, W)` -> `(B, width, H, W)`: a 1x1 branch, a 3x3 branch per rate and the average, fused by 1x1.

    Args:
        conv: builds a 3x3 branch from its input channels, its output channels and its dilation rate.
    """

    def __init__(
        self, in_channels: int, width: int, rates: Sequence[int], conv: Callable[[int, int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.pointwise = conv_bn_relu(in_channels, width, 1)
        self.atrous = nn.ModuleList(conv(in_channels, width, rate) for rate in rates)
        self.pooled = ImagePooling(in_channels, width)
        self.project = conv_bn_relu((2 + len(rates)) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.pointwise(x), *(branch(x) for branch in self.atrous), self.pooled(x)]
        return self.project(torch.cat(branches, 1))


class ImagePooling(nn.Module):
    """The average over the whole map, projected and spread back over the map."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(norm_pooled(self.norm, self.conv(x.mean((2, 3), keepdim=True))))
        return pooled.expand(-1, -1, *x.shape[2:])


def scaled_rates(rates: Sequence[int], published_at: int, reduction: int) -> list[int]:
    """Rescale dilation rates from stride `published_at` to `reduction`, so that they cover the same image distance."""
    return [max(1, rate * published_at // reduction) for rate in rates]
