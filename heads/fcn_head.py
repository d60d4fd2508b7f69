"""The plain fully convolutional head of torchvision and MMSegmentation, and the auxiliary head of deep supervision.

A 3x3 convolution to a quarter of the channels, batch norm, ReLU, dropout 0.1 and 1x1 scores on one map, at output
stride 8. PSPNet (Zhao et al. 2016, arXiv:1612.01105) calls this baseline ResNet-FCN and uses the same layers on an
earlier map for its auxiliary loss. This is not the FCN of Long et al.; that is in `heads.fcn`. Torchvision's
checkpoints fit.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.conv_norm import conv_bn_relu
from heads.head import Head, last


class FCNHead(Head):
    """Scores of the last map; logits at its stride.

    Args:
        dropout: dropout probability before the scores.
    """

    output_stride = 8

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], num_classes: int, *, dropout: float = 0.1
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        width = max(1, channels[-1] // 4)
        self.layers = nn.Sequential(
            *conv_bn_relu(channels[-1], width, 3), nn.Dropout(dropout), nn.Conv2d(width, num_classes, 1)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.layers(features[-1])
