"""Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs (DeepLab-LargeFOV).

Chen, Papandreou, Kokkinos, Murphy, Yuille 2014, arXiv:1412.7062. On the last map, at output stride 8: fc6 as a 3x3
convolution with dilation 12 and 1024 channels, fc7 as a 1x1 convolution with 1024, dropout 0.5 after each, and 1x1
scores. With VGG-16 this is the paper's network of 20.5 M parameters. The dilation is halved at output stride 16 and
again at 32. Differences from the paper: fc6 and fc7 are initialised as in He et al. 2015, not with every fourth weight
of VGG's own; VGG's pools keep their 2x2 windows unless `--backbone-options '{pools: 3x3}'` asks for the paper's; scores
are upsampled without aligned corners.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.aspp import scaled_rates
from heads.head import Head, last


class DeepLabV1(Head):
    """Scores with a large field of view on the last map; logits at its stride.

    Args:
        rate: dilation of fc6 at output stride 8.
        hidden: channels of fc6 and fc7.
        dropout: dropout probability after fc6 and after fc7.
    """

    output_stride = 8

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        rate: int = 12,
        hidden: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        (scaled,) = scaled_rates((rate,), 8, reductions[-1])
        self.branch = large_field_of_view(channels[-1], hidden, num_classes, scaled, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.branch(features[-1])


def large_field_of_view(in_channels: int, hidden: int, num_classes: int, rate: int, dropout: float) -> nn.Sequential:
    """fc6, fc7 and scores: `(B, C, H, W)` -> `(B, num_classes, H, W)`."""
    fc6 = nn.Conv2d(in_channels, hidden, 3, padding=rate, dilation=rate)
    fc7 = nn.Conv2d(hidden, hidden, 1)
    for layer in (fc6, fc7):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return nn.Sequential(
        fc6,
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        fc7,
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        init_score(nn.Conv2d(hidden, num_classes, 1)),
    )


def init_score(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialise weights with N(0, 0.01) and biases with zero, as the paper does in its last layer."""
    nn.init.normal_(layer.weight, 0, 0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
