"""Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs (DeepLab-LargeFOV).

Chen, Papandreou, Kokkinos, Murphy, Yuille 2014, arXiv:1412.7062. On the last map, at output stride 8: fc6 as a 3x3
convolution with dilation 12 and 1024 channels, fc7 as a 1x1 convolution with 1024, dropout 0.5 after each, and 1x1
scores. With VGG-16 this is the paper's network of 20.5 M parameters. The dilation is halved at output stride 16 and
again at 32. `sampled` initialises fc6 and fc7 as the paper does, from those of a published classifier such as VGG-16's:
every fourth neuron of both, and of fc6's 7x7 positions the 3x3 that lie three apart. Without it they are initialised as
in He et al. 2015. Differences from the paper: VGG's pools keep their 2x2 windows unless `--backbone-options '{pools:
3x3}'` asks for the paper's; scores are upsampled without aligned corners.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.aspp import scaled_rates
from heads.head import Head, last


class DeepLabV1(Head):
    """Scores with a large field of view on the last map; logits at its stride.

    Args:
        rate: dilation of fc6 at output stride 8.
        hidden: channels of fc6 and fc7.
        dropout: dropout probability after fc6 and after fc7.
        sampled: fc6 and fc7 start from the weights of the backbone's own, which must be in the file of its weights.
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
        sampled: bool = False,
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        self.sampled = sampled
        self.pretrained = ("branch.0", "branch.3") if sampled else ()
        (scaled,) = scaled_rates((rate,), 8, reductions[-1])
        self.branch = large_field_of_view(channels[-1], hidden, num_classes, scaled, dropout)

    def take_samples(self, fc6: nn.Linear, fc7: nn.Linear) -> None:
        """Start fc6 and fc7 from evenly spaced neurons and positions of a classifier's fully connected layers.

        Raises:
            ValueError: they were not in the file of weights, or are smaller than this head's.
        """
        own6, own7 = (layer for layer in self.branch[:-1] if isinstance(layer, nn.Conv2d))
        if fc6.weight.isnan().any():
            raise ValueError("deeplabv1's option sampled needs fc6 and fc7 in the file of --weights, which has none")
        side = math.isqrt(fc6.in_features // own6.in_channels)
        if fc6.out_features < own6.out_channels:
            raise ValueError(
                f"deeplabv1 has hidden={own6.out_channels}, above the {fc6.out_features} neurons to sample; lower it"
            )
        whole = fc6.weight.detach().view(fc6.out_features, own6.in_channels, side, side)
        places, first = spaced(side, 3), spaced(fc6.out_features, own6.out_channels)
        second = spaced(fc7.out_features, own7.out_channels)
        assert own6.bias is not None
        assert own7.bias is not None
        with torch.no_grad():
            own6.weight.copy_(whole[first][:, :, places][..., places])
            own6.bias.copy_(fc6.bias[first])
            own7.weight.copy_(fc7.weight[second][:, first, None, None])
            own7.bias.copy_(fc7.bias[second])

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.branch(features[-1])


def spaced(number: int, wanted: int) -> Tensor:
    """`wanted` indices below `number`, evenly spaced from 0: three of 7 are 0, 3, 6; 1024 of 4096 every fourth."""
    step = (number - 1) // (wanted - 1) if wanted > 1 else 1
    return torch.arange(wanted) * step


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
