"""Searching for MobileNetV3, section 6.4: the segmentation head Lite R-ASPP.

Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le, Adam 2019, arXiv:1905.02244. The last map is
reduced by a 1x1 convolution and multiplied by a gate computed from its average; its scores are added to those of the
stride-8 map. Parameter names are those of torchvision's trained head. Difference from the paper, as in torchvision: the
gate averages over the whole map, while the paper pools 49x49 windows at stride (16, 20).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.conv_norm import conv_bn_relu
from heads.head import Head, last, level_at


class LRASPP(Head):
    """Gated scores of the last map plus scores of the stride-8 map; logits at stride 8.

    Args:
        width: channels of the reduced last map.
    """

    required_strides = (8,)
    output_stride = 16

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], num_classes: int, *, width: int = 128
    ) -> None:
        low = level_at(reductions, 8)
        super().__init__(reductions, [low, last(reductions)])
        self.cbr = conv_bn_relu(channels[-1], width, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], width, 1, bias=False), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(channels[low], num_classes, 1)
        self.high_classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        low_level, high_level = self.levels
        low, high = features[low_level], features[high_level]
        x = self.cbr(high) * self.scale(high)
        x = self.fit(x, high_level, low_level, low.shape[2:])
        return self.low_classifier(low) + self.high_classifier(x)
