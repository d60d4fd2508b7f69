"""Squeeze-and-Excitation Networks. Hu, Shen, Albanie, Sun, Wu 2017, arXiv:1709.01507.

The published networks: SE-ResNet-50/101/152, SE-ResNeXt-50/101 (32x4d) and SENet-154, the paper's largest. (To add such
gates to other networks, use their option `se_reduction`.) These are conversions of the authors' Caffe models
and differ from torchvision's ResNets in these points:

- the stem's pool has no padding and rounds its output size up, so its windows start one pixel later;
- in SE-ResNet the first 1x1 convolution of a bottleneck has the stride, as in He et al. 2015, in the others the 3x3;
- SENet-154 has a stem of three 3x3 convolutions, grouped 3x3 convolutions (64 groups) wider than the 1x1 before them,
  3x3 projections in the strided shortcuts, and dropout before its classifier.

`se_reduction` is the r of the gates, 16 in the published networks; 0 leaves them out. Convolutions are initialised by
He et al. 2015. Loads timm's checkpoints legacy_seresnet50 ... legacy_senet154.
"""

from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone, changes
from backbones.classifiers import PooledClassifier
from backbones.squeeze_excitation import PAPER_REDUCTION, make_gate


class Variant(NamedTuple):
    """A row of the table of networks."""

    depths: tuple[int, int, int, int]
    inner: tuple[int, int]
    """Output channels of the first and the second convolution of a bottleneck, per channel of its nominal width."""
    groups: int
    strides_first: bool
    """Whether the first 1x1 convolution of a bottleneck has the stride, instead of the 3x3."""
    large: bool
    """Whether it has the stem, projections and dropout of SENet-154."""
    top1: float
    """ImageNet accuracy in percent, from timm's table of results."""
    file: str
    """The published weights, under `RELEASES`."""


RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download/"
D50, D101, D152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
VARIANTS = {
    "se_resnet50": Variant(D50, (1, 1), 1, True, False, 77.650, "v0.1-cadene/se_resnet50-ce0d4300.pth"),
    "se_resnet101": Variant(D101, (1, 1), 1, True, False, 78.370, "v0.1-cadene/se_resnet101-7e38fcc6.pth"),
    "se_resnet152": Variant(D152, (1, 1), 1, True, False, 78.662, "v0.1-cadene/se_resnet152-d17c99b7.pth"),
    "se_resnext50_32x4d": Variant(
        D50, (2, 2), 32, False, False, 79.080, "v0.1-weights/legacy_se_resnext50_32x4d-f3651bad.pth"
    ),
    "se_resnext101_32x4d": Variant(
        D101, (2, 2), 32, False, False, 80.274, "v0.1-weights/legacy_se_resnext101_32x4d-37725eac.pth"
    ),
    "senet154": Variant(D152, (2, 4), 64, False, True, 81.320, "v0.1-weights/legacy_senet154-e9eb9fe6.pth"),
}
EXPANSION = 4


class SEBottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 and a gate on the residual; `projection` is the shortcut's kernel size, 0 for the identity."""

    def __init__(
        self, in_channels: int, width: int, step: Step, variant: Variant, projection: int, se_reduction: int
    ) -> None:
        super().__init__()
        one, two, out = width * variant.inner[0], width * variant.inner[1], width * EXPANSION
        first, second = (step.stride, 1) if variant.strides_first else (1, step.stride)
        dilation = step.dilation_after if variant.strides_first else step.dilation
        self.conv1 = nn.Conv2d(in_channels, one, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(one)
        self.conv2 = conv(one, two, 3, second, dilation, variant.groups)
        self.bn2 = nn.BatchNorm2d(two)
        self.conv3 = nn.Conv2d(two, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = make_gate(out, se_reduction)
        self.downsample: nn.Module = nn.Identity()
        if projection:
            projected = conv(in_channels, out, projection, step.stride, step.dilation)
            self.downsample = nn.Sequential(projected, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.se_module(self.bn3(self.conv3(y))) + self.downsample(x))


def conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)


class SENet(Backbone):
    """Residual networks with a gate in every block; maps at strides 2, 4, 8, 16, 32."""

    min_size = 3

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se_reduction: int = PAPER_REDUCTION,
    ) -> None:
        super().__init__(variant)
        row = VARIANTS[variant]
        self.changed_options = changes(se_reduction=(se_reduction, PAPER_REDUCTION))
        stem, pool, *stages = atrous_steps((2, 2, 1, 2, 2, 2), output_stride)
        before = 128 if row.large else 64
        layer0 = [conv(in_channels, 64, 3, stem.stride), conv(64, 64, 3), conv(64, before, 3)]
        if not row.large:
            layer0 = [conv(in_channels, before, 7, stem.stride)]
        self.layer0 = stem_of(layer0)
        self.pool0 = nn.MaxPool2d(3, pool.stride, ceil_mode=True)
        channels, layers = [before], []
        for depth, width, step in zip(row.depths, (64, 128, 256, 512), stages, strict=True):
            strides = step is not stages[0]
            blocks = [SEBottleneck(channels[-1], width, step, row, 3 if row.large and strides else 1, se_reduction)]
            blocks += [
                SEBottleneck(width * EXPANSION, width, step.rest, row, 0, se_reduction) for _ in range(depth - 1)
            ]
            layers.append(nn.Sequential(*blocks))
            channels.append(width * EXPANSION)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = tuple(channels)
        self.reductions = (stem.reduction, *(step.reduction for step in stages))
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.layer0(x)
        c2 = self.layer1(self.pool0(c1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return [c1, c2, c3, c4, c5]

    def classifier(self, num_classes: int) -> nn.Module:
        dropout = 0.2 if VARIANTS[self.variant].large else 0.0
        return PooledClassifier("last_linear", nn.Linear(self.channels[-1], num_classes), dropout)

    def published_url(self) -> str:
        return RELEASES + VARIANTS[self.variant].file

    def published_top1(self) -> float:
        return VARIANTS[self.variant].top1


def stem_of(convolutions: list[nn.Conv2d]) -> nn.Sequential:
    """The convolutions, each followed by batch norm and ReLU, named conv1, bn1, relu1, conv2, ..."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, convolution in enumerate(convolutions, start=1):
        parts[f"conv{i}"] = convolution
        parts[f"bn{i}"] = nn.BatchNorm2d(convolution.out_channels)
        parts[f"relu{i}"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)
