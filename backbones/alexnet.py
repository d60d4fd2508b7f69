"""ImageNet Classification with Deep Convolutional Neural Networks. Krizhevsky, Sutskever, Hinton 2012, NeurIPS 25.

`alexnet_2gpu` is the paper's network: two towers that meet at the third and the fully connected layers (grouped
convolutions here, on one device), local response normalisation inside each tower, 227 x 227 images; no weights in this
form are published by torchvision or timm. `alexnet` is the single tower of Krizhevsky 2014 (arXiv:1404.5997), without
normalisation and with dropout before fc6 and fc7, for 224 x 224 images; it loads torchvision's checkpoint.

Both start as the 2012 paper says: weights N(0, 0.01), biases 1 in convolutions 2, 4, 5 and in fc6 and fc7, else 0.
Pools are 3x3 with stride 2, overlapping and unpadded, so maps are a little smaller than image / stride.
"""

from typing import NamedTuple

from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.fully_connected import FullyConnectedBackbone, init_normal


class Layout(NamedTuple):
    """What the two forms differ in."""

    widths: tuple[int, int, int, int, int]
    """Channels of the five convolutions, both towers together."""
    towers: int
    normalised: bool
    padding: int
    """Of the first convolution."""
    dropout_first: bool
    image: int
    min_size: int


VARIANTS: dict[str, Layout] = {
    "alexnet": Layout((64, 192, 384, 256, 256), 1, False, padding=2, dropout_first=True, image=224, min_size=63),
    "alexnet_2gpu": Layout((96, 256, 384, 384, 256), 2, True, padding=0, dropout_first=False, image=227, min_size=67),
}


class AlexNet(FullyConnectedBackbone):
    """AlexNet in one tower or two: what enters each pool at strides 4, 8 and 16, and the last pool's map at 32."""

    window = 6
    hidden_bias = 1.0
    valid_borders = 59

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        fully_convolutional: bool = False,
    ) -> None:
        super().__init__(variant)
        layout = VARIANTS[variant]
        self.dropout_first, self.input_size, self.min_size = layout.dropout_first, layout.image, layout.min_size
        first, pool1, pool2, pool5 = atrous_steps((4, 2, 2, 2), output_stride)
        c1, c2, c3, c4, c5 = layout.widths
        towers, rate = layout.towers, pool2.after

        def normalised() -> list[nn.Module]:
            return [TowerNorm(towers)] if layout.normalised else []

        def conv3x3(before: int, after: int, groups: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=rate, dilation=rate, groups=groups)

        # Pools without padding may drop a border. Kept so where they lose their stride, they stay exact on any image.
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, 11, first.stride, padding=layout.padding),
            nn.ReLU(inplace=True),
            *normalised(),
            nn.MaxPool2d(3, pool1.stride, dilation=pool1.dilation),
            nn.Conv2d(c1, c2, 5, padding=2 * pool1.after, dilation=pool1.after, groups=towers),
            nn.ReLU(inplace=True),
            *normalised(),
            nn.MaxPool2d(3, pool2.stride, dilation=pool2.dilation),
            conv3x3(c2, c3, groups=1),
            nn.ReLU(inplace=True),
            conv3x3(c3, c4, towers),
            nn.ReLU(inplace=True),
            conv3x3(c4, c5, towers),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, pool5.stride, dilation=pool5.dilation),
        )
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        for convolution, bias in zip(convolutions, (0, 1, 0, 1, 1), strict=True):
            init_normal(convolution, bias)
        self.channels = (c1, c2, c5, c5)
        self.reductions = (first.reduction, pool1.reduction, pool2.reduction, pool5.reduction)
        start = 5 - layout.padding
        # fc6's even window is centred half a value of pool 5 before the value it is stored at
        self.first_centres = (start, start + 4, start + 12, start + (12 if fully_convolutional else 28))
        self.connect(fully_convolutional, pool5.after)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, self.fully_connected(x)]


class TowerNorm(nn.Module):
    """Local response normalisation (section 3.3), x / (2 + 1e-4 * sum of squares over five channels)^0.75.

    A channel's neighbours are those of its own tower: the towers' devices do not exchange these maps.
    """

    def __init__(self, towers: int) -> None:
        super().__init__()
        self.towers = towers
        self.norm = response_norm()

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return self.norm(x.reshape(b * self.towers, c // self.towers, h, w)).reshape(b, c, h, w)


def response_norm() -> nn.LocalResponseNorm:
    """The paper's constants. PyTorch multiplies alpha with the mean of the five squares, the paper with their sum."""
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
