"""Densely Connected Convolutional Networks. Huang et al. 2016, arXiv:1608.06993: the networks for 32x32 images.

Section 3 and table 2: a 3x3 convolution and dense blocks of equal length, three in the paper, with a transition between
two blocks. densenet40 has growth 12 and neither bottlenecks nor compression; densenet100_bc has both (theta = 0.5). The
first convolution has 16 channels, or 2 k if both are used. `depth` counts the layers with weights, `blocks` the dense
blocks; `growth`, `compression`, `bottleneck` and `se_reduction` are those of `backbones.densenet`. `dropout` follows
each convolution of the dense blocks (0.2 in the paper without augmentation).

No deliberate difference from the paper. Initialised by He et al. 2015. No weights are published; `mean` and `std` are
CIFAR-10's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import CIFAR_MEAN, CIFAR_STD, Backbone
from backbones.classifiers import PooledClassifier
from backbones.densenet import DenseBlock, Design, transition

VARIANTS: dict[str, tuple[int, Design]] = {
    "densenet40": (40, Design(growth=12, bottleneck=0, compression=1.0)),
    "densenet100_bc": (100, Design(growth=12, bottleneck=4, compression=0.5)),
}
"""Layers with weights, and what the layers have in common."""


class DenseNetCifar(Backbone):
    """DenseNet-40 and DenseNet-BC-100 for small images; a map for each block, at strides 1, 2, 4 if there are three.

    The maps are concatenations without norm or activation, which belong to the transition; the last one is normalised
    and activated.

    Raises:
        ValueError: `depth` gives no whole number of layers per block, or another option is out of its range.
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
        blocks: int = 3,
        growth: int | None = None,
        compression: float | None = None,
        bottleneck: int | None = None,
        dropout: float = 0.0,
        se_reduction: int = 0,
    ) -> None:
        super().__init__(variant)
        own_depth, own = VARIANTS[variant]
        design = Design(
            own.growth if growth is None else growth,
            own.bottleneck if bottleneck is None else bottleneck,
            own.compression if compression is None else compression,
            dropout,
            se_reduction,
        )
        design.check()
        layers = layers_per_block(own_depth if depth is None else depth, blocks, design.bottleneck > 0)
        width = 2 * design.growth if design.bottleneck and design.compression < 1 else 16
        steps = atrous_steps((1, *(blocks - 1) * (2,)), output_stride)
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.transitions, self.blocks = nn.ModuleList([nn.Identity()]), nn.ModuleList()
        channels = []
        for i, step in enumerate(steps):
            if i > 0:
                kept = design.compressed(width)
                self.transitions.append(transition(width, kept, step))
                width = kept
            self.blocks.append(DenseBlock(width, layers, design, step.dilation_after))
            width += layers * design.growth
            channels.append(width)
        self.norm = nn.BatchNorm2d(width)
        self.channels = tuple(channels)
        self.reductions = tuple(step.reduction for step in steps)
        self.first_centres = tuple((2**i - 1) / 2 for i in range(blocks))
        self.min_size = self.reductions[-1]
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.conv(x), []
        for transition_before, block in zip(self.transitions, self.blocks, strict=True):
            x = block(transition_before(x))
            maps.append(x)
        return [*maps[:-1], F.relu(self.norm(x))]

    def classifier(self, num_classes: int) -> nn.Module:
        linear = nn.Linear(self.channels[-1], num_classes)
        nn.init.zeros_(linear.bias)
        return PooledClassifier("classifier", linear)


def layers_per_block(depth: int, blocks: int, bottleneck: bool) -> int:
    """Dense layers of each block: the first convolution, the transitions and the classifier count as layers too.

    Raises:
        ValueError: the blocks would not have the same whole number of layers.
    """
    if not 1 <= blocks <= 5:
        raise ValueError(f"blocks is {blocks}; give 1 to 5, 3 in the paper")
    convolutions = 2 if bottleneck else 1
    layers, over = divmod(depth - blocks - 1, blocks * convolutions)
    if over or layers < 1:
        each, low = blocks * convolutions, max(1, layers)
        raise ValueError(
            f"depth is {depth}; {blocks} blocks{' with bottlenecks' if bottleneck else ''} have {each} n + "
            f"{blocks + 1} layers, such as {low * each + blocks + 1} or {(low + 1) * each + blocks + 1}"
        )
    return layers
