"""Pyramid Scene Parsing Network (PSPNet). Zhao, Shi, Qi, Wang, Jia 2017, arXiv:1612.01105.

The last map, at output stride 8, is averaged over 1x1, 2x2, 3x3 and 6x6 bins; each pyramid level is reduced to a
quarter of the channels, enlarged and joined with the map, and a 3x3 convolution makes 512 channels of it before the
scores. Differences from the authors' code: enlarging does not align corners; no auxiliary loss inside the head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.conv_norm import PooledBatchNorm, conv_bn_relu
from heads.head import Head

BINS = (1, 2, 3, 6)


class PSPNet(Head):
    """Pyramid pooling on the last map; logits at its stride.

    Args:
        bins: cells per side of each pyramid level.
        width: channels before the scores.
        dropout: probability of zeroing a channel before the scores.
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
        super().__init__()
        level_width = max(1, channels[-1] // len(bins))
        self.pyramid = nn.ModuleList(pyramid_level(channels[-1], level_width, bin_count) for bin_count in bins)
        self.join = conv_bn_relu(channels[-1] + len(bins) * level_width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        levels = (F.interpolate(level(x), x.shape[2:], mode="bilinear", align_corners=False) for level in self.pyramid)
        return self.score(self.dropout(self.join(torch.cat((x, *levels), 1))))


def pyramid_level(in_channels: int, out_channels: int, bins: int) -> nn.Sequential:
    """`(B, C, H, W)` -> `(B, out_channels, bins, bins)`; one bin is one value per channel and image."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(bins),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        PooledBatchNorm(out_channels),
        nn.ReLU(inplace=True),
    )
