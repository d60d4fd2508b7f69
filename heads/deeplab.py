"""Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation (DeepLabv3+).

Chen, Zhu, Papandreou, Schroff, Adam 2018, arXiv:1802.02611. Atrous spatial pyramid pooling on the last map (a 1x1
branch, three separable 3x3 branches at rates 6, 12, 18 for output stride 16, and the image's average), then a decoder
that joins it with 48 channels of the stride-4 map. Rates follow the output stride: doubled at 8, halved at 32.
Difference from the paper's code: dropout 0.5 behind the pyramid as in torchvision's DeepLabv3, where the paper's
TensorFlow code has 0.1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.head import Head, level

RATES_AT_16 = (6, 12, 18)


class DeepLab(Head):
    """DeepLabv3+; logits at stride 4.

    Args:
        rates: dilations of the pyramid's branches at output stride 16.
        dropout: probability of zeroing a value behind the pyramid.
    """

    needs = (4,)
    output_stride = 16

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        rates: Sequence[int] = RATES_AT_16,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        low = level(reductions, 4)
        self.low_level = 0 if low is None else low
        scaled = [max(1, rate * 16 // reductions[-1]) for rate in rates]
        self.aspp = ASPP(channels[-1], 256, scaled)
        self.dropout = nn.Dropout(dropout)
        self.reduce = conv_bn_relu(channels[self.low_level], 48, 1)
        self.decode = nn.Sequential(separable_conv(256 + 48, 256, 1), separable_conv(256, 256, 1))
        self.score = nn.Conv2d(256, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.reduce(features[self.low_level])
        x = self.dropout(self.aspp(features[-1]))
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        return self.score(self.decode(torch.cat((x, low), 1)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with the image's average as one branch (arXiv:1706.05587, section 3.3)."""

    def __init__(self, in_channels: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.pointwise = conv_bn_relu(in_channels, width, 1)
        self.atrous = nn.ModuleList(separable_conv(in_channels, width, rate) for rate in rates)
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
        self.norm = PooledBatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(self.norm(self.conv(x.mean((2, 3), keepdim=True))))
        return pooled.expand(-1, -1, *x.shape[2:])


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm that trains with one image per device.

    One value per channel has no variance, and PyTorch refuses it; such a batch is normalised with the running
    statistics, which it leaves as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
    """A 3x3 convolution per channel at `rate`, then 1x1 across channels, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *conv_bn_relu(in_channels, out_channels, 1),
    )
