"""Searching for MobileNetV3, section 6.4: the segmentation head Lite R-ASPP.

Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le, Adam 2019, arXiv:1905.02244. The last map is
reduced by a 1x1 convolution and weighed by a gate from its average; its scores are added to those of the stride-8 map.
Parameter names are those of torchvision's trained head. Difference from the paper, as in torchvision: the gate averages
over the whole map, where the paper pools 49x49 windows at stride (16, 20).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from heads.conv_norm import conv_bn_relu
from heads.head import Head, level


class LRASPP(Head):
    """Gated scores of the last map plus scores of the stride-8 map; logits at stride 8.

    Args:
        width: channels of the reduced last map.
    """

    needs = (8,)
    output_stride = 16

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], num_classes: int, *, width: int = 128
    ) -> None:
        super().__init__()
        low = level(reductions, 8)
        self.low_level = 0 if low is None else low
        self.cbr = conv_bn_relu(channels[-1], width, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], width, 1, bias=False), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(channels[self.low_level], num_classes, 1)
        self.high_classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        low, high = features[self.low_level], features[-1]
        x = self.cbr(high) * self.scale(high)
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(x)
