"""Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation (DeepLabv3+).

Chen, Zhu, Papandreou, Schroff, Adam 2018, arXiv:1802.02611. Atrous spatial pyramid pooling on the last map (a 1x1
branch, three separable 3x3 branches at rates 6, 12, 18 for output stride 16, and the image's average), then a decoder
that joins it with 48 channels of the stride-4 map. Rates follow the output stride: doubled at 8, halved at 32.
Differences from the paper's code: dropout 0.5 after the pyramid, as in torchvision's DeepLabv3, where the TensorFlow
code has 0.1; upsampling does not align corners, which with the paper's crops of 8k + 1 pixels lets a network trained at
output stride 16 be scored at 8 without moving its scores.

Batch norm and ReLU follow each depthwise convolution, as in the authors' code. `depthwise_norm: false` leaves them out,
as segmentation_models.pytorch does; the network then learns faster in the first hundred steps (see heads/README.md).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from heads.aspp import ASPP, scaled_rates
from heads.conv_norm import conv_bn_relu, separable_conv
from heads.head import Head, last, level_at

RATES_AT_16 = (6, 12, 18)


class DeepLabV3Plus(Head):
    """DeepLabv3+; logits at stride 4.

    Args:
        rates: dilation rates of the pyramid's branches at output stride 16.
        dropout: dropout probability after the pyramid.
        depthwise_norm: whether batch norm and ReLU follow depthwise convolutions.
    """

    required_strides = (4,)
    output_stride = 16

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        rates: Sequence[int] = RATES_AT_16,
        dropout: float = 0.5,
        depthwise_norm: bool = True,
    ) -> None:
        low = level_at(reductions, 4)
        super().__init__(reductions, [low, last(reductions)])
        conv = partial(separable_conv, depthwise_norm=depthwise_norm)
        self.aspp = ASPP(channels[-1], 256, scaled_rates(rates, 16, reductions[-1]), conv)
        self.dropout = nn.Dropout(dropout)
        self.reduce = conv_bn_relu(channels[low], 48, 1)
        self.decode = nn.Sequential(conv(256 + 48, 256, 1), conv(256, 256, 1))
        self.score = nn.Conv2d(256, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        low_level, high_level = self.levels
        low = self.reduce(features[low_level])
        x = self.dropout(self.aspp(features[high_level]))
        x = self.fit(x, high_level, low_level, low.shape[2:])
        return self.score(self.decode(torch.cat((x, low), 1)))
