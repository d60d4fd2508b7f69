"""Deep Residual Learning for Image Recognition. He, Zhang, Ren, Sun 2015, arXiv:1512.03385.

ResNet-18/34 stack two 3x3 convolutions per block, ResNet-50/101/152 a 1x1-3x3-1x1 bottleneck. Differences from the
paper: the 3x3 convolution of a bottleneck strides, not the first 1x1 (the form torchvision publishes weights for).
`zero_init` starts the last batch norm of each block at zero, so that every block begins as the identity (Goyal et al.
2017, arXiv:1706.02677): very deep networks start to learn at once. Loads torchvision's checkpoints.
"""

from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone


class BasicBlock(nn.Module):
    """3x3 - 3x3, as wide inside as outside."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, step: Step) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, step.stride, step.dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1, step.after)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, step)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1, four times wider outside than inside."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, step: Step) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, step.stride, step.dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width * self.expansion, step)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def shortcut(in_channels: int, out_channels: int, step: Step) -> nn.Module:
    """The paper's option B: identity, or a 1x1 projection where the shape changes.

    A block that gave up its stride for dilation keeps the projection its weights were trained with.
    """
    if in_channels == out_channels and step.stride == 1 and step.dilation == step.after:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, step.stride, bias=False), nn.BatchNorm2d(out_channels)
    )


VARIANTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(Backbone):
    """ResNet-18 / 34 / 50 / 101 / 152: residual blocks in four stages; maps at strides 2, 4, 8, 16, 32."""

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        zero_init: bool = True,
    ) -> None:
        super().__init__(variant)
        block, depths = VARIANTS[variant]
        stem, pool, *stages = atrous_steps((2, 2, 1, 2, 2, 2), output_stride)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stem.stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, pool.stride, padding=1)
        widths = (64, 128, 256, 512)
        c = block.expansion
        self.layer1 = make_stage(block, 64, widths[0], depths[0], stages[0])
        self.layer2 = make_stage(block, widths[0] * c, widths[1], depths[1], stages[1])
        self.layer3 = make_stage(block, widths[1] * c, widths[2], depths[2], stages[2])
        self.layer4 = make_stage(block, widths[2] * c, widths[3], depths[3], stages[3])
        self.channels = (64, *(width * c for width in widths))
        self.reductions = (stem.reduction, *(step.reduction for step in stages))
        self.init_weights()
        if zero_init:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.relu(self.bn1(self.conv1(x)))
        c2 = self.layer1(self.maxpool(c1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return [c1, c2, c3, c4, c5]

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledLinear(self.channels[-1], num_classes)


def make_stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, depth: int, step: Step
) -> nn.Sequential:
    """`depth` blocks, the first of which strides (or dilates the rest)."""
    rest = Step(1, step.after, step.after, step.reduction)
    blocks = [block(in_channels, width, step)]
    blocks += [block(width * block.expansion, width, rest) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class PooledLinear(nn.Module):
    """Global average pooling and one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))
