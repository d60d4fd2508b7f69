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

from heads.aspp import ASPP, scaled_rates
from heads.conv_norm import conv_bn_relu, separable_conv
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
        self.aspp = ASPP(channels[-1], 256, scaled_rates(rates, 16, reductions[-1]), separable=True)
        self.dropout = nn.Dropout(dropout)
        self.reduce = conv_bn_relu(channels[self.low_level], 48, 1)
        self.decode = nn.Sequential(separable_conv(256 + 48, 256, 1), separable_conv(256, 256, 1))
        self.score = nn.Conv2d(256, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.reduce(features[self.low_level])
        x = self.dropout(self.aspp(features[-1]))
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        return self.score(self.decode(torch.cat((x, low), 1)))
