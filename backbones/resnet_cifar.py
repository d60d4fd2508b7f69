"""Deep Residual Learning for Image Recognition. He, Zhang, Ren, Sun 2015, arXiv:1512.03385: the networks for CIFAR.

Section 4.2: a 3x3 convolution and three stages of n blocks of two 3x3 convolutions, with 16, 32 and 64 channels, for
images of 32 x 32 pixels; 6n + 2 layers with weights. `depth` is that number, `width` the channels of the first stage.
`shortcut` is "A" as in the paper, "B" or "none" (`backbones.shortcuts`): "none" gives the plain networks, whose error
grows with depth (figure 6). `se_reduction` puts a squeeze-and-excitation gate on each residual.

No deliberate difference from the paper, which initialises by He et al. 2015. No weights are published; `mean` and `std`
are CIFAR-10's (the paper subtracts a mean image).
"""

from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import CIFAR_MEAN, CIFAR_STD, Backbone
from backbones.classifiers import PooledClassifier
from backbones.resnet import BasicBlock, Style, make_stage
from backbones.shortcuts import Shortcut, check_shortcut

VARIANTS = {"resnet20": 20, "resnet32": 32, "resnet44": 44, "resnet56": 56, "resnet110": 110}
"""Layers with weights."""


class ResNetCifar(Backbone):
    """ResNet-20 / 32 / 44 / 56 / 110 for small images; maps at strides 1, 2, 4 at any output stride.

    Raises:
        ValueError: `depth` is not 6n + 2, or another option has a value that is not described above.
    """

    input_size = 32
    mean = CIFAR_MEAN
    std = CIFAR_STD

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        depth: int | None = None,
        width: int = 16,
        shortcut: Shortcut = "A",
        se_reduction: int = 0,
    ) -> None:
        super().__init__(variant)
        check_shortcut(shortcut)
        blocks = blocks_per_stage(VARIANTS[variant] if depth is None else depth, 2)
        if width < 1:
            raise ValueError(f"width is {width}; give the channels of the first stage, 16 in the paper")
        style = Style(se_reduction=se_reduction, shortcut=shortcut)
        steps = atrous_steps((1, 2, 2), output_stride)
        self.channels = (width, 2 * width, 4 * width)
        self.reductions = tuple(step.reduction for step in steps)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        inputs = (width, *self.channels[:-1])
        self.layer1, self.layer2, self.layer3 = (
            make_stage(BasicBlock, before, after, blocks, step, style)
            for before, after, step in zip(inputs, self.channels, steps, strict=True)
        )
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.layer1(self.relu(self.bn1(self.conv1(x))))
        c2 = self.layer2(c1)
        return [c1, c2, self.layer3(c2)]

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes))


def blocks_per_stage(depth: int, rest: int, layers: int = 6) -> int:
    """The n of a network with `layers` * n + `rest` layers with weights.

    Raises:
        ValueError: there is no such n of 1 or more.
    """
    n, over = divmod(depth - rest, layers)
    if over or n < 1:
        low = max(1, n) * layers + rest
        raise ValueError(
            f"depth is {depth}; this network has {layers} n + {rest} layers, such as {low} or {low + layers}"
        )
    return n
