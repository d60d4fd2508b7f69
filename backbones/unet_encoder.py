"""U-Net: Convolutional Networks for Biomedical Image Segmentation. Ronneberger, Fischer, Brox 2015, arXiv:1505.04597.

The contracting path: five blocks of two 3x3 convolutions, separated by 2x2 max pools, with 64 to 1024 channels, no
batch norm, and dropout on the two coarsest maps, as in the authors' released network. With the `unet` head it is the
original network. Difference from the paper: convolutions are padded, so that a map of stride s has H / s rows, unless
`valid_convolutions` is set. Weights are initialised by He et al. 2015 (fan in), biases are 0. No weights are
published.
"""

from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.pooling import Pool2d

CHANNELS = (64, 128, 256, 512, 1024)


class UNetEncoder(Backbone):
    """U-Net's contracting path: maps at strides 1, 2, 4, 8 and 16.

    With `valid_convolutions` each convolution crops one pixel at every border, as in the paper: 572 x 572 pixels give
    maps of 568, 280, 136, 64 and 28. The side before each pool should then be even; otherwise the pool drops a row.
    """

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        valid_convolutions: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(variant)
        first, *steps = atrous_steps((1, 2, 2, 2, 2), output_stride)
        self.blocks = nn.ModuleList([DoubleConv(in_channels, CHANNELS[0], first.dilation_after, valid_convolutions)])
        self.pools = nn.ModuleList([nn.Identity()])
        for i, step in enumerate(steps):
            self.pools.append(Pool2d("max", 2, step))
            self.blocks.append(DoubleConv(CHANNELS[i], CHANNELS[i + 1], step.dilation_after, valid_convolutions))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout if i >= 3 else 0) for i in range(len(CHANNELS)))
        self.first_centres = (2, 6.5, 15.5, 33.5, 69.5) if valid_convolutions else (0, 0.5, 1.5, 3.5, 7.5)
        self.channels = CHANNELS
        self.reductions = (first.reduction, *(step.reduction for step in steps))
        self.cropped_pixels = 124 if valid_convolutions else 0
        self.min_size = self.cropped_pixels + self.reductions[-1]
        self.init_weights(mode="fan_in")
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for pool, block, dropout in zip(self.pools, self.blocks, self.dropouts, strict=True):
            x = dropout(block(pool(x)))
            maps.append(x)
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        """Global average pooling and one linear layer; the paper has no classifier."""
        return PooledClassifier("fc", nn.Linear(CHANNELS[-1], num_classes))


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with a ReLU: `(B, C, H, W)` -> `(B, C', H, W)`, or 4 * dilation smaller if valid."""

    def __init__(self, in_channels: int, channels: int, dilation: int, valid: bool) -> None:
        padding = 0 if valid else dilation
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=padding, dilation=dilation),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=padding, dilation=dilation),
            nn.ReLU(inplace=True),
        )
