"""DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs.

Chen, Papandreou, Kokkinos, Murphy, Yuille 2016, arXiv:1606.00915 (DeepLabv2). The first form of atrous spatial pyramid
pooling: four branches on the last map with dilations 6, 12, 18, 24 (ASPP-L) or 2, 4, 8, 12 (ASPP-S) at output stride 8,
whose scores are summed. On ResNet a branch is one 3x3 score layer; on VGG (`hidden=1024`) each branch has its own fc6,
fc7 and score layer. Dilations are halved at output stride 16 and again at 32. Differences from the paper: three image
scales are not fused inside the network; fc6 and fc7 are initialised as in He et al. 2015, not from VGG's; scores are
upsampled without aligned corners.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from heads.aspp import scaled_rates
from heads.deeplabv1 import init_score, large_field_of_view
from heads.head import Head, last

BRANCHES: dict[str, tuple[int, ...]] = {
    "L": (6, 12, 18, 24),
    "S": (2, 4, 8, 12),
}
"""Dilations at output stride 8."""


class DeepLabV2(Head):
    """Scores of four dilated branches on the last map, summed; logits at its stride.

    Args:
        branches: "L" for dilations 6, 12, 18, 24, "S" for 2, 4, 8, 12.
        hidden: channels of each branch's fc6 and fc7; 0 (the ResNet form) scores the map directly.
        dropout: dropout probability after fc6 and after fc7.
    """

    output_stride = 8

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        branches: Literal["L", "S"] = "L",
        hidden: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        if branches not in BRANCHES:
            raise ValueError(f"deeplabv2 has branches=L or branches=S, not branches={branches}")
        rates = scaled_rates(BRANCHES[branches], 8, reductions[-1])
        self.branches = nn.ModuleList(
            large_field_of_view(channels[-1], hidden, num_classes, rate, dropout)
            if hidden
            else init_score(nn.Conv2d(channels[-1], num_classes, 3, padding=rate, dilation=rate))
            for rate in rates
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        first, *others = (branch(features[-1]) for branch in self.branches)
        return sum(others, first)
