"""Pyramid Scene Parsing Network (PSPNet). Zhao, Shi, Qi, Wang, Jia 2017, arXiv:1612.01105.

The last map, at output stride 8, is averaged over 1x1, 2x2, 3x3 and 6x6 bins; each pyramid level is reduced to a
quarter of the channels, upsampled and concatenated with the map, and a 3x3 convolution reduces the result to 512
channels before the scores. Differences from the authors' code: upsampling does not align corners; the auxiliary loss is
not part of the head (`--aux-weight` adds it to any head).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.conv_norm import conv_bn_relu, norm_pooled
from heads.head import Head, last
from heads.pooling import BinnedPool

BINS = (1, 2, 3, 6)


class PSPNet(Head):
    """Pyramid pooling on the last map; logits at its stride.

    Args:
        bins: number of bins along each side, for each pyramid level.
        width: channels before the scores.
        dropout: probability of dropping a whole channel before the scores.
    """

    output_stride = 8

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        bins: Sequence[int] = BINS,
        width: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        level_width = max(1, channels[-1] // len(bins))
        self.pyramid = nn.ModuleList(PyramidLevel(channels[-1], level_width, bin_count) for bin_count in bins)
        self.join = conv_bn_relu(channels[-1] + len(bins) * level_width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        return self.score(self.dropout(self.join(torch.cat((x, *(level(x) for level in self.pyramid)), 1))))


class PyramidLevel(nn.Sequential):
    """Averages over bins, reduced to `out_channels` and stretched over the map: `(B, C, H, W)` in and out."""

    def __init__(self, in_channels: int, out_channels: int, bins: int) -> None:
        super().__init__(
            BinnedPool("average", bins),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        pool, conv, norm, relu = self
        level = relu(norm_pooled(norm, conv(pool(x))))
        return F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=False).to(x.dtype)
