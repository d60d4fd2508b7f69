"""Visualizing and Understanding Convolutional Networks. Zeiler, Fergus 2013, arXiv:1311.2901.

AlexNet on one device with a finer start: 7x7 convolutions of stride 2, then 5x5 of stride 2, so that less aliases.
Figure 3 gives the sides 224, 110, 55, 26, 13, 6 and leaves the paddings open: one pixel around the first convolution
and the first two pools, and none around the second convolution and the last pool, meet them. Response normalisation,
the paper's contrast normalisation across feature maps, stands behind the first two pools with AlexNet's constants.
Weights start at N(0, 0.01), where the paper only says 0.01, and biases at 0. No weights are published. The count of
62,357,608 parameters follows from dense convolutions of 96-256-384-384-256 channels and fc6 on a 6x6 map.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from backbones.alexnet import response_norm
from backbones.atrous import atrous_steps
from backbones.fully_connected import FullyConnectedBackbone, init_normal


class ZFNet(FullyConnectedBackbone):
    """ZFNet: convolution 1, pool 1, convolution 2, convolution 5 and pool 5 at strides 2, 4, 8, 16, 32."""

    window = 6
    min_size = 53
    valid_borders = 47

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
        steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        first, pool1, second, pool2, pool5 = steps
        rate = pool2.after
        self.conv1 = nn.Conv2d(in_channels, 96, 7, first.stride, padding=1)
        self.pool1 = nn.MaxPool2d(3, pool1.stride, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, second.stride)
        self.pool2 = nn.MaxPool2d(3, pool2.stride, padding=pool2.dilation, dilation=pool2.dilation)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=rate, dilation=rate)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=rate, dilation=rate)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=rate, dilation=rate)
        self.pool5 = nn.MaxPool2d(3, pool5.stride, dilation=pool5.dilation)
        self.norm = response_norm()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            init_normal(convolution)
        self.channels = (96, 96, 256, 256, 256)
        self.reductions = tuple(step.reduction for step in steps)
        # fc6's even window is centred half a value of pool 5 before the value it is stored at
        self.first_centres = (2, 2, 10, 10, 10 if fully_convolutional else 26)
        self.connect(fully_convolutional, pool5.after)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = relu(self.conv1(x))
        c2 = self.norm(self.pool1(c1))
        c3 = relu(self.conv2(c2))
        x = relu(self.conv3(self.norm(self.pool2(c3))))
        c4 = relu(self.conv5(relu(self.conv4(x))))
        return [c1, c2, c3, c4, self.fully_connected(self.pool5(c4))]
