"""ImageNet Classification with Deep Convolutional Neural Networks. Krizhevsky, Sutskever, Hinton 2012, NeurIPS 25.

`alexnet_2gpu` is the paper's network: two towers that are joined only at the third convolution and at the fully
connected layers (grouped convolutions here, on one device), local response normalisation inside each tower, and 227 x
227 images. No weights in this form are published by torchvision or timm. `alexnet` is the single tower of One weird
trick for parallelizing convolutional neural networks (Krizhevsky 2014, arXiv:1404.5997), without normalisation and with
dropout before fc6 and fc7, for 224 x 224 images; it loads torchvision's checkpoint.

Both are initialised as in the 2012 paper: weights from N(0, 0.01), biases 1 in convolutions 2, 4 and 5 and in fc6 and
fc7, else 0. These values, and the constants of the response normalisation, are for pixels from 0 to 255 minus their
mean, so `alexnet_2gpu` gets such images (`std` is 1 / 255); `alexnet` gets the scale of torchvision's weights.
`response_norm` adds the normalisation or leaves it out (section 3.3 compares both). Pools
are 3x3 with stride 2, overlapping and unpadded, so maps are a little smaller than image / stride.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import IMAGENET_STD, changes
from backbones.fully_connected import FullyConnectedBackbone, init_normal
from backbones.squeeze_excitation import SqueezeExcitation, make_relu

PAPERS = {
    "One weird trick for parallelizing convolutional neural networks. Krizhevsky 2014, arXiv:1404.5997.": ("alexnet",),
}
"""Papers of the variants that are not from the paper in the first line above."""

PIXEL_STD = (1 / 255,) * 3
"""Divides images in [0, 1] into pixels from 0 to 255."""


class Variant(NamedTuple):
    """A row of the table of networks."""

    widths: tuple[int, int, int, int, int]
    """Channels of the five convolutions, both towers together."""
    towers: int
    normalised: bool
    """Whether there is local response normalisation."""
    padding: int
    """Padding of the first convolution."""
    dropout_first: bool
    input_size: int
    min_size: int
    std: tuple[float, ...]


VARIANTS = {
    "alexnet": Variant((64, 192, 384, 256, 256), 1, False, 2, True, 224, 63, IMAGENET_STD),
    "alexnet_2gpu": Variant((96, 256, 384, 384, 256), 2, True, 0, False, 227, 67, PIXEL_STD),
}


class AlexNet(FullyConnectedBackbone):
    """AlexNet with one or two towers; maps: each pool's input at strides 4, 8 and 16, the last pool's output at 32."""

    window = 6
    hidden_bias = 1.0
    cropped_pixels = 59
    optional_modules = (SqueezeExcitation,)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        fully_convolutional: bool = False,
        se_reduction: int = 0,
        response_norm: bool | None = None,
    ) -> None:
        super().__init__(variant)
        row = VARIANTS[variant]
        norm = row.normalised if response_norm is None else response_norm
        self.changed_options = changes(response_norm=(norm, row.normalised))
        self.dropout_first, self.input_size, self.min_size = row.dropout_first, row.input_size, row.min_size
        self.std = row.std
        first, pool1, pool2, pool5 = atrous_steps((4, 2, 2, 2), output_stride)
        c1, c2, c3, c4, c5 = row.widths
        towers, rate = row.towers, pool2.dilation_after

        def normalised() -> list[nn.Module]:
            return [TowerNorm(towers)] if norm else []

        def conv3x3(before: int, after: int, groups: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=rate, dilation=rate, groups=groups)

        # Unpadded pools may drop a border. They stay unpadded when dilated, which keeps them exact for any image size.
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, 11, first.stride, padding=row.padding),
            make_relu(c1, se_reduction),
            *normalised(),
            nn.MaxPool2d(3, pool1.stride, dilation=pool1.dilation),
            nn.Conv2d(c1, c2, 5, padding=2 * pool1.dilation_after, dilation=pool1.dilation_after, groups=towers),
            make_relu(c2, se_reduction),
            *normalised(),
            nn.MaxPool2d(3, pool2.stride, dilation=pool2.dilation),
            conv3x3(c2, c3, groups=1),
            make_relu(c3, se_reduction),
            conv3x3(c3, c4, towers),
            make_relu(c4, se_reduction),
            conv3x3(c4, c5, towers),
            make_relu(c5, se_reduction),
            nn.MaxPool2d(3, pool5.stride, dilation=pool5.dilation),
        )
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        for convolution, bias in zip(convolutions, (0, 1, 0, 1, 1), strict=True):
            init_normal(convolution, bias)
        self.channels = (c1, c2, c5, c5)
        self.reductions = (first.reduction, pool1.reduction, pool2.reduction, pool5.reduction)
        start = 5 - row.padding
        # fc6's even window is centred half a value of pool 5 before the value it is stored at
        self.first_centres = (start, start + 4, start + 12, start + (12 if fully_convolutional else 28))
        self.add_fully_connected(fully_convolutional, pool5.dilation_after)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, self.fully_connected(x)]


class TowerNorm(nn.Module):
    """Local response normalisation (section 3.3) of `(B, C, H, W)`, over neighbouring channels of the same tower only.

    The paper's two GPUs, one for each tower, do not exchange these maps.
    """

    def __init__(self, towers: int) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, x: Tensor) -> Tensor:
        if self.towers == 1:
            return response_norm(x)
        return torch.cat([response_norm(tower) for tower in x.chunk(self.towers, 1)], 1)


def response_norm(x: Tensor) -> Tensor:
    """x / (2 + 1e-4 * sum of squares over five neighbouring channels)^0.75, with the paper's constants.

    Sums of shifted maps take half the time of `nn.LocalResponseNorm`, whose gradient is not deterministic on GPUs.
    """
    channels = x.shape[1]
    squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
    total = squares[:, :channels]
    for i in range(1, 5):
        total = total + squares[:, i : i + channels]
    return x * (2 + 1e-4 * total) ** -0.75
