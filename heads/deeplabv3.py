"""Rethinking Atrous Convolution for Semantic Image Segmentation (DeepLabv3).

Chen, Papandreou, Schroff, Adam 2017, arXiv:1706.05587. Atrous spatial pyramid pooling on the last map: a 1x1 branch,
three 3x3 branches at rates 6, 12, 18 for output stride 16, doubled at 8 and halved at 32, and the image's average,
256 channels each with batch norm. Differences from the paper, all as in torchvision, whose trained checkpoints fit
layer by layer: dropout 0.5 after the pyramid, a 3x3 convolution with batch norm before the scores, and upsampling
without aligned corners. Multi-grid rates are an option of the backbone.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.aspp import ASPP, scaled_rates
from heads.conv_norm import conv3x3_bn_relu, conv_bn_relu
from heads.head import Head, last

RATES_AT_16 = (6, 12, 18)


class DeepLabV3(Head):
    """Pyramid pooling by dilation on the last map; logits at its stride.

    Args:
        rates: dilation rates of the pyramid's branches at output stride 16.
        dropout: dropout probability after the pyramid.
    """

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
        super().__init__(reductions, [last(reductions)])
        self.aspp = ASPP(channels[-1], 256, scaled_rates(rates, 16, reductions[-1]), conv3x3_bn_relu)
        self.dropout = nn.Dropout(dropout)
        self.refine = conv_bn_relu(256, 256, 3)
        self.score = nn.Conv2d(256, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.score(self.refine(self.dropout(self.aspp(features[-1]))))
