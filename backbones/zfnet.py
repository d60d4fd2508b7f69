"""Visualizing and Understanding Convolutional Networks. Zeiler, Fergus 2013, arXiv:1311.2901.

AlexNet on one device with finer first layers (7x7 with stride 2, then 5x5 with stride 2), which reduces aliasing.
Figure 3 gives map sides of 224, 110, 55, 26, 13 and 6 but no paddings; they result from one pixel of padding in the
first convolution and the first two pools, and none in the second convolution and the last pool. The paper's contrast
normalisation across feature maps, after the first two pools, is response normalisation with AlexNet's constants.
Weights are drawn from N(0, 0.01) (the paper gives 0.01 alone), biases are 0. As in `backbones.alexnet`, these values
are for pixels from 0 to 255 minus their mean, so `std` is 1 / 255. No weights are published. The 62,357,608 parameters
follow from dense convolutions of 96-256-384-384-256 channels and fc6 on a 6x6 map.
"""

from torch import Tensor, nn

from backbones.alexnet import PIXEL_STD, TowerNorm
from backbones.atrous import atrous_steps
from backbones.fully_connected import FullyConnectedBackbone, init_normal
from backbones.squeeze_excitation import SqueezeExcitation, make_relu


class ZFNet(FullyConnectedBackbone):
    """ZFNet; maps: the outputs of convolution 1, pool 1, convolution 2, convolution 5 and pool 5 at strides 2 to 32."""

    std = PIXEL_STD
    window = 6
    min_size = 53
    cropped_pixels = 47
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
    ) -> None:
        super().__init__(variant)
        steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        first, pool1, second, pool2, pool5 = steps
        rate = pool2.dilation_after
        self.conv1 = nn.Conv2d(in_channels, 96, 7, first.stride, padding=1)
        self.pool1 = nn.MaxPool2d(3, pool1.stride, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, second.stride)
        self.pool2 = nn.MaxPool2d(3, pool2.stride, padding=pool2.dilation, dilation=pool2.dilation)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=rate, dilation=rate)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=rate, dilation=rate)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=rate, dilation=rate)
        self.pool5 = nn.MaxPool2d(3, pool5.stride, dilation=pool5.dilation)
        self.norm = TowerNorm(1)
        self.relu1, self.relu2, self.relu3, self.relu4, self.relu5 = (
            make_relu(width, se_reduction) for width in (96, 256, 384, 384, 256)
        )
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            init_normal(convolution)
        self.channels = (96, 96, 256, 256, 256)
        self.reductions = tuple(step.reduction for step in steps)
        # fc6's even window is centred half a value of pool 5 before the value it is stored at
        self.first_centres = (2, 2, 10, 10, 10 if fully_convolutional else 26)
        self.add_fully_connected(fully_convolutional, pool5.dilation_after)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.relu1(self.conv1(x))
        c2 = self.norm(self.pool1(c1))
        c3 = self.relu2(self.conv2(c2))
        x = self.relu3(self.conv3(self.norm(self.pool2(c3))))
        c4 = self.relu5(self.conv5(self.relu4(self.conv4(x))))
        return [c1, c2, c3, c4, self.fully_connected(self.pool5(c4))]
