"""Deep Residual Learning for Image Recognition. He, Zhang, Ren, Sun 2015, arXiv:1512.03385.

ResNet-18/34 stack two 3x3 convolutions per block, ResNet-50/101/152 a 1x1-3x3-1x1 bottleneck. Two papers change only
the bottleneck's inside: Wide Residual Networks (Zagoruyko, Komodakis 2016, arXiv:1605.07146; here the ImageNet form,
WRN-50-2 and 101-2) double its width; Aggregated Residual Transformations (ResNeXt: Xie, Girshick, Dollár, Tu, He 2016,
arXiv:1611.05431) split it into 32 or 64 groups.

Differences from the papers: the 3x3 convolution of a bottleneck strides, not the first 1x1 (the form torchvision
publishes weights for). `zero_init` starts the last batch norm of each block at zero, so that every block begins as the
identity (Goyal et al. 2017, arXiv:1706.02677): very deep networks start to learn at once. Convolutions start as in
He et al. 2015. Loads torchvision's checkpoints (V1).

Four knobs change the blocks of any variant. The published weights load under the first two, whose own parameters then
keep their initial values:

- `se`: a squeeze-and-excitation gate on each residual (Hu et al. 2017, arXiv:1709.01507), reduction 16. Untrained gates
  let about half of it through: train them before judging a network that took published weights.
- `deformable` = n: the 3x3 convolutions of the last n stages are deformable (see `backbones.deformable`).
- `shortcut`: where the shape changes, "B" projects by a 1x1 convolution; "A" has no parameters: it keeps every
  stride-th pixel and fills the new channels with zeros.
- `multi_grid`: a further dilation for each block of the last stage, such as (1, 2, 4) (DeepLabv3, arXiv:1706.05587,
  section 3.2.1). It has no parameters, but the published weights were trained without it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.deformable import DeformableConv2d, Offsets
from backbones.pooled_linear import PooledLinear
from backbones.squeeze_excitation import SqueezeExcitation


class Style(NamedTuple):
    """What the blocks of one stage have in common beside their width and stride."""

    groups: int = 1
    group_width: int = 64
    """Channels per group of the 3x3 convolution in a bottleneck of nominal width 64."""
    se: bool = False
    shortcut: Literal["A", "B"] = "B"
    deformable: Literal[0, 1, 2] = 0
    """Version of the deformable convolutions; 0 for plain ones."""


class BasicBlock(nn.Module):
    """3x3 - 3x3, as wide inside as outside."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, step: Step, style: Style) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, step.stride, step.dilation, style)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1, step.after, style)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.se = make_gate(width, style)
        self.downsample = make_shortcut(in_channels, width, step, style)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.se(self.bn2(self.conv2(y))) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1, four times its nominal width outside."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, step: Step, style: Style) -> None:
        super().__init__()
        inside, outside = width * style.group_width // 64 * style.groups, width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = conv3x3(inside, inside, step.stride, step.dilation, style)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.se = make_gate(outside, style)
        self.downsample = make_shortcut(in_channels, outside, step, style)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.se(self.bn3(self.conv3(y))) + self.downsample(x))


def conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int, style: Style) -> nn.Conv2d:
    if style.deformable:
        return DeformableConv2d(in_channels, out_channels, stride, dilation, style.groups, style.deformable)
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, groups=style.groups, bias=False
    )


def make_gate(channels: int, style: Style) -> nn.Module:
    return SqueezeExcitation(channels, channels // 16) if style.se else nn.Identity()


def make_shortcut(in_channels: int, out_channels: int, step: Step, style: Style) -> nn.Module:
    """Identity, or the paper's option A or B where the shape changes.

    A block that gave up its stride for dilation keeps the projection its weights were trained with.
    """
    if in_channels == out_channels and step.stride == 1 and step.dilation == step.after:
        return nn.Identity()
    if style.shortcut == "A":
        return ZeroPaddedIdentity(step.stride, out_channels - in_channels)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, step.stride, bias=False), nn.BatchNorm2d(out_channels))


class ZeroPaddedIdentity(nn.Module):
    """Option A: `(B, C, H, W)` -> `(B, C + extra, H / stride, W / stride)`, the extra channels zero."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra={self.extra}"


class Variant(NamedTuple):
    """A row of the table of networks."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    groups: int = 1
    group_width: int = 64


VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3)),
    "wide_resnet50_2": Variant(Bottleneck, (3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": Variant(Bottleneck, (3, 4, 23, 3), group_width=128),
    "resnext50_32x4d": Variant(Bottleneck, (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Variant(Bottleneck, (3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Variant(Bottleneck, (3, 4, 23, 3), groups=64, group_width=4),
}


class ResNet(Backbone):
    """ResNet, Wide-ResNet and ResNeXt: residual blocks in four stages; maps at strides 2, 4, 8, 16, 32.

    Raises:
        ValueError: `deformable`, `deformable_version` or `shortcut` is none of the values named above.
    """

    optional_modules = (SqueezeExcitation, Offsets)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        zero_init: bool = True,
        se: bool = False,
        deformable: int = 0,
        deformable_version: Literal[1, 2] = 2,
        shortcut: Literal["A", "B"] = "B",
        multi_grid: Sequence[int] = (),
    ) -> None:
        super().__init__(variant)
        check_knobs(deformable, deformable_version, shortcut)
        block, depths, groups, group_width = VARIANTS[variant]
        if multi_grid and (len(multi_grid) != depths[-1] or min(multi_grid) < 1):
            raise ValueError(
                f"multi_grid is {list(multi_grid)}; {variant} takes {depths[-1]} rates of 1 or more, one for each "
                "block of its last stage"
            )
        self.shortcut = shortcut
        plain = Style(groups, group_width, se, shortcut)
        styles = (4 - deformable) * [plain] + deformable * [plain._replace(deformable=deformable_version)]
        stem, pool, *stages = atrous_steps((2, 2, 1, 2, 2, 2), output_stride)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stem.stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, pool.stride, padding=1)
        widths = (64, 128, 256, 512)
        c = block.expansion
        self.layer1 = make_stage(block, 64, widths[0], depths[0], stages[0], styles[0])
        self.layer2 = make_stage(block, widths[0] * c, widths[1], depths[1], stages[1], styles[1])
        self.layer3 = make_stage(block, widths[1] * c, widths[2], depths[2], stages[2], styles[2])
        self.layer4 = make_stage(block, widths[2] * c, widths[3], depths[3], stages[3], styles[3], multi_grid)
        self.channels = (64, *(width * c for width in widths))
        self.reductions = (stem.reduction, *(step.reduction for step in stages))
        self.start(zero_init)
        self.load(weights)

    def start(self, zero_init: bool) -> None:
        """Set all weights to where training from nothing starts."""
        self.init_weights()
        for module in self.modules():
            if isinstance(module, Offsets):
                module.start_plain()
            elif zero_init and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.relu(self.bn1(self.conv1(x)))
        c2 = self.layer1(self.maxpool(c1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return [c1, c2, c3, c4, c5]

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledLinear(self.channels[-1], num_classes)

    def published_url(self) -> str:
        if self.shortcut == "A":
            raise ValueError(
                'no ImageNet weights are published for shortcut "A" (torchvision\'s are trained with projections); '
                'use shortcut "B", --weights FILE or none'
            )
        return super().published_url()


def check_knobs(deformable: int, deformable_version: int, shortcut: str) -> None:
    if deformable not in range(5):
        raise ValueError(f"deformable is {deformable}; the network has 4 stages: give 0 (none) to 4 (all)")
    if deformable_version not in (1, 2):
        raise ValueError(f"deformable_version is {deformable_version}; give 1 (offsets) or 2 (offsets and modulation)")
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut is {shortcut!r}; give "A" (zero-padded identity) or "B" (projection)')


def make_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    depth: int,
    step: Step,
    style: Style,
    multi_grid: Sequence[int] = (),
) -> nn.Sequential:
    """`depth` blocks, the first of which strides (or dilates the rest), each dilated further by its `multi_grid`."""
    steps = [step, *(depth - 1) * [Step(1, step.after, step.after, step.reduction)]]
    for i, rate in enumerate(multi_grid):
        steps[i] = steps[i]._replace(dilation=steps[i].dilation * rate, after=steps[i].after * rate)
    inputs = [in_channels, *(depth - 1) * [width * block.expansion]]
    return nn.Sequential(*(block(c, width, one, style) for c, one in zip(inputs, steps, strict=True)))
