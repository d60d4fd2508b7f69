"""Deep Residual Learning for Image Recognition. He, Zhang, Ren, Sun 2015, arXiv:1512.03385.

ResNet-18/34 stack two 3x3 convolutions per block, ResNet-50/101/152 a 1x1-3x3-1x1 bottleneck. Two papers change only
the inside of the bottleneck: Wide Residual Networks (2016; here the ImageNet form, WRN-50-2 and 101-2) double its
width, ResNeXt (2016) splits it into 32 or 64 groups.

Differences from the papers: the 3x3 convolution of a bottleneck has the stride, not the first 1x1 (as in torchvision's
networks, whose V1 checkpoints this loads). `zero_init` initialises the scale of the last batch norm of each block to
zero, so that every block is initially the identity and very deep networks start to learn at once (Goyal et al. 2017,
arXiv:1706.02677). Convolutions are initialised by He et al. 2015.

These options change the blocks of any variant. The published weights load under the first two, whose own parameters
then keep their initial values:

- `se_reduction` = r: a squeeze-and-excitation gate on each residual (`backbones.squeeze_excitation`). `se` is short for
  r = 16.
- `deformable` = n: the 3x3 convolutions of the last n stages are deformable (see `backbones.deformable`).
- `shortcut`: "A", "B" or "none", see `backbones.shortcuts`. "none" gives the plain networks (section 3.3), in which
  `zero_init` does nothing.
- `groups` and `group_width`: the cardinality and the channels per group of a bottleneck's 3x3 convolution in the first
  stage, which the later stages double. ResNeXt's table 4 compares 32x4d with a ResNet-101 that is wider, 1x100d:
  `--backbone resnet101 --backbone-options '{group_width: 100}'`.
- `stem`: "3x3" puts three 3x3 convolutions in the place of the first 7x7 (ResNet-C), with which PSPNet's authors and
  MMSegmentation train. torchvision publishes no weights for it; `--weights FILE` takes timm's, such as resnet50c's.
- `removed`: blocks, counted from 0, of which only the shortcut is left. Veit, Wilber, Belongie 2016 (arXiv:1605.06431)
  remove blocks of trained networks, which are sums over 2^n paths: `--start-from RUN/checkpoints/best.ckpt --epochs 0`.
- `multi_grid`: a further dilation rate for each block of the last stage, such as (1, 2, 4) (DeepLabv3,
  arXiv:1706.05587, section 3.2.1). It has no parameters, but the published weights were trained without it. The rates
  multiply those of exact dilation, where the block that gives up its stride keeps the rate of the stage before: at
  output stride 16, (1, 2, 4) gives rates 1, 4 and 8. The paper dilates that block as well: 2, 4 and 8.
- `c4`: the maps end with that of stride 16, C4. The last stage belongs to the classifier, and to the layers that a
  detector applies to each region of C4 (section 4.3 and appendix A); there it keeps its stride.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone, changes
from backbones.classifiers import PooledClassifier
from backbones.deformable import DeformableConv2d, Offsets, check_deformable
from backbones.shortcuts import Shortcut, add_shortcut, check_shortcut, make_shortcut
from backbones.squeeze_excitation import SqueezeExcitation, make_gate, reduction_of

PAPERS = {
    "Wide Residual Networks. Zagoruyko, Komodakis 2016, arXiv:1605.07146.": ("wide_resnet50_2", "wide_resnet101_2"),
    "Aggregated Residual Transformations for Deep Neural Networks (ResNeXt). Xie et al. 2016, arXiv:1611.05431.": (
        "resnext50_32x4d",
        "resnext101_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
    ),
}
"""Papers of the variants that are not from the paper in the first line above."""


class Style(NamedTuple):
    """Options that all blocks of one stage share, besides their width and stride."""

    groups: int = 1
    group_width: int = 64
    """Channels per group of the 3x3 convolution in a bottleneck of nominal width 64."""
    se_reduction: int = 0
    shortcut: Shortcut = "B"
    deformable: Literal[0, 1, 2] = 0
    """Version of the deformable convolutions; 0 for plain ones."""


class BasicBlock(nn.Module):
    """3x3 - 3x3; the inner width equals the outer."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, step: Step, style: Style) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, step.stride, step.dilation, style)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1, step.dilation_after, style)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.se = make_gate(width, style.se_reduction)
        self.downsample = make_shortcut(in_channels, width, step, style.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(add_shortcut(self.se(self.bn2(self.conv2(y))), x, self.downsample))


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1; the output is four times as wide as the nominal width."""

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
        self.se = make_gate(outside, style.se_reduction)
        self.downsample = make_shortcut(in_channels, outside, step, style.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(add_shortcut(self.se(self.bn3(self.conv3(y))), x, self.downsample))


def conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int, style: Style) -> nn.Conv2d:
    if style.deformable:
        return DeformableConv2d(in_channels, out_channels, stride, dilation, style.groups, style.deformable)
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, groups=style.groups, bias=False
    )


class OnlyShortcut(nn.Module):
    """What is left of a block without its residual."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        assert self.downsample is not None
        return F.relu(self.downsample(x))


class LastStage(nn.Module):
    """The last stage, global average pooling and the output layer, if there are classes: `(B, C, H, W)` -> `(B, D)`."""

    side = 14
    """Values along each side of a region, which the stage halves."""

    def __init__(self, stage: nn.Module, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.layer4 = stage
        self.channels = channels
        self.fc = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(x).mean((2, 3)))


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
    "resnext101_32x4d": Variant(Bottleneck, (3, 4, 23, 3), groups=32, group_width=4),
    "resnext101_32x8d": Variant(Bottleneck, (3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Variant(Bottleneck, (3, 4, 23, 3), groups=64, group_width=4),
}


class ResNet(Backbone):
    """ResNet, Wide-ResNet and ResNeXt: residual blocks in four stages; maps at strides 2, 4, 8, 16, 32.

    Raises:
        ValueError: an option has a value that is not described above.
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
        se_reduction: int = 0,
        deformable: int = 0,
        deformable_version: Literal[1, 2] = 2,
        shortcut: Shortcut = "B",
        groups: int | None = None,
        group_width: int | None = None,
        multi_grid: Sequence[int] = (),
        c4: bool = False,
        stem: Literal["7x7", "3x3"] = "7x7",
        removed: Sequence[int] = (),
    ) -> None:
        super().__init__(variant)
        if stem not in ("7x7", "3x3"):
            raise ValueError(f"stem is {stem!r}; give 7x7, or 3x3 for three convolutions in its place")
        check_deformable(deformable, deformable_version)
        check_shortcut(shortcut)
        row = VARIANTS[variant]
        block, depths = row.block, row.depths
        groups, group_width = groups_of(variant, groups, group_width)
        if multi_grid and (len(multi_grid) != depths[-1] or min(multi_grid) < 1):
            raise ValueError(
                f"multi_grid is {list(multi_grid)}; {variant} takes {depths[-1]} rates of 1 or more, one for each "
                "block of its last stage"
            )
        self.changed_options = changes(
            shortcut=(shortcut, "B"),
            groups=(groups, row.groups),
            group_width=(group_width, row.group_width),
            stem=(stem, "7x7"),
            removed=(tuple(removed), ()),
        )
        plain = Style(groups, group_width, reduction_of(se, se_reduction), shortcut)
        styles = (4 - deformable) * [plain] + deformable * [plain._replace(deformable=deformable_version)]
        first, pool, *stages = atrous_steps((2, 2, 1, 2, 2, 2), output_stride)
        self.conv1: nn.Module = (
            nn.Conv2d(in_channels, 64, 7, first.stride, padding=3, bias=False)
            if stem == "7x7"
            else three_convolutions(in_channels, 32, 64, first.stride)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, pool.stride, padding=1)
        widths = (64, 128, 256, 512)
        c = block.expansion
        self.layer1 = make_stage(block, 64, widths[0], depths[0], stages[0], styles[0])
        self.layer2 = make_stage(block, widths[0] * c, widths[1], depths[1], stages[1], styles[1])
        self.layer3 = make_stage(block, widths[1] * c, widths[2], depths[2], stages[2], styles[2])
        self.c4, self.zero_init = c4, zero_init and shortcut != "none"
        last = stages[3]._replace(stride=2, dilation=1, dilation_after=1) if c4 else stages[3]
        self.last_stage = partial(make_stage, block, widths[2] * c, widths[3], depths[3], last, styles[3], multi_grid)
        if not c4:
            self.layer4 = self.last_stage()
        maps = 4 if c4 else 5
        self.features = widths[3] * c
        self.channels = (64, *(width * c for width in widths))[:maps]
        self.reductions = (first.reduction, *(step.reduction for step in stages))[:maps]
        self.remove(removed)
        self.initialise(self)
        self.load(weights)

    def remove(self, numbers: Sequence[int]) -> None:
        """Leave only the shortcut of some blocks, which are counted over all stages.

        Raises:
            ValueError: there are no such blocks, or no shortcuts.
        """
        stages = [self.layer1, self.layer2, self.layer3, *([] if self.c4 else [self.layer4])]
        blocks = [(stage, i) for stage in stages for i in range(len(stage))]
        for number in numbers:
            if not 0 <= number < len(blocks):
                raise ValueError(f"removed has {number}; {self.variant} has the blocks 0 to {len(blocks) - 1} here")
            stage, i = blocks[number]
            block = stage[i]
            if isinstance(block, (BasicBlock, Bottleneck)):
                if block.downsample is None:
                    raise ValueError("removed leaves shortcuts, and shortcut none has none; leave one of the two out")
                stage[i] = OnlyShortcut(block)

    def initialise(self, part: nn.Module) -> None:
        """Initialise all weights of a part for training from scratch."""
        self.init_weights(part.modules())
        for module in part.modules():
            if isinstance(module, Offsets):
                module.initialise()
            elif self.zero_init and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.relu(self.bn1(self.conv1(x)))
        c2 = self.layer1(self.maxpool(c1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c1, c2, c3, c4] if self.c4 else [c1, c2, c3, c4, self.layer4(c4)]

    def classifier(self, num_classes: int) -> nn.Module:
        if self.c4:
            return self._classifier_with_stage(num_classes)
        return PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes))

    def region_layers(self) -> nn.Module | None:
        return self._classifier_with_stage(0) if self.c4 else None

    def _classifier_with_stage(self, num_classes: int) -> LastStage:
        stage = self.last_stage()
        self.initialise(stage)
        return LastStage(stage, self.features, num_classes)


def three_convolutions(in_channels: int, width: int, channels: int, stride: int) -> nn.Sequential:
    """ResNet-C's stem (He et al. 2018, arXiv:1812.01187); its last norm and ReLU are the network's own."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, channels, 3, padding=1, bias=False),
    )


def groups_of(variant: str, groups: int | None, group_width: int | None) -> tuple[int, int]:
    """Groups and channels per group of a variant, or those that its options ask for.

    Raises:
        ValueError: they are below 1, or asked for where there are no bottlenecks.
    """
    row = VARIANTS[variant]
    given = groups is not None or group_width is not None
    groups, group_width = (
        row.groups if groups is None else groups,
        row.group_width if group_width is None else group_width,
    )
    if given and row.block is BasicBlock:
        raise ValueError(
            f"{variant} has no bottlenecks, so groups and group_width do not apply; use resnet50, 101 or 152"
        )
    if groups < 1 or group_width < 1:
        raise ValueError(f"groups is {groups} and group_width {group_width}; give 1 or more of each")
    return groups, group_width


def make_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    depth: int,
    step: Step,
    style: Style,
    multi_grid: Sequence[int] = (),
) -> nn.Sequential:
    """`depth` blocks, the first of which has the stage's stride, each dilated further by its `multi_grid` rate."""
    steps = [step, *(depth - 1) * [step.rest]]
    for i, rate in enumerate(multi_grid):
        steps[i] = steps[i]._replace(dilation=steps[i].dilation * rate, dilation_after=steps[i].dilation_after * rate)
    inputs = [in_channels, *(depth - 1) * [width * block.expansion]]
    return nn.Sequential(*(block(c, width, one, style) for c, one in zip(inputs, steps, strict=True)))
