"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. Tan, Le 2019, arXiv:1905.11946.

Version 2: EfficientNetV2: Smaller Models and Faster Training. Tan, Le 2021, arXiv:2104.00298.

B1 to B7 are B0 scaled: channels are multiplied by a width coefficient and rounded to multiples of 8, the blocks of a
stage are multiplied by a depth coefficient and rounded up. efficientnet_b0 takes any other scaling: `phi` multiplies
depth by alpha^phi, width by beta^phi and resolution by gamma^phi (section 3.3, where a search gives 1.2, 1.1 and 1.15,
so that alpha beta^2 gamma^2 is about 2 and each step of phi doubles the cost); `depth`, `width` and `resolution` are
coefficients of one dimension alone (figure 3), or override that of `phi`. The resolution is that of `input_size`; train
with an `--image-size` of it. If the coefficients are rounded to one decimal, phi = 0.5, 1, 2 and 3.5 give exactly the
stages of B1 to B4. B5 to B7 (phi = 5, 6 and 7) have 11 to 14 % less depth than the formula, and its width within 3 %.
The input sizes of the paper are within 5 % of it.

`se_reduction` is what the gates divide a block's input channels by, 4 in the published networks; 0 leaves the gates
out.

The authors found B0 and the V2 networks by architecture search, which is not part of this framework. V2 has full 3x3
convolutions in its early stages.

Differences from the papers: batch norms have the eps and momentum that the published weights were made with, and
stochastic depth rises to 0.2 in all variants; both as in torchvision, whose checkpoints this loads. The input sizes are
those its weights were scored at (B2: 288, in the paper 260). Weights are initialised as in the authors' TensorFlow
code: normal with variance 2 / fan out, counted within a group. (torchvision counts all groups together, which makes the
initial values of depthwise filters smaller by the square root of the number of groups.) As in their code, the
classifier is initialised uniformly within 1 / sqrt(classes), but the bound never exceeds that for 1000 classes: with
two classes it would be 0.7, and such weights would swamp the features of a frozen backbone.
"""

import math
from functools import partial
from typing import ClassVar, NamedTuple

from torch import nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, changes
from backbones.classifiers import PooledClassifier
from backbones.cpu_conv import CPUConv2d
from backbones.inverted_residual import (
    ConvNorm,
    InvertedResidual,
    InvertedResidualNet,
    Residual,
    make_divisible,
)
from backbones.squeeze_excitation import SqueezeExcitation, check_reduction

IMAGENET_CLASSES = 1000
LAST_DROP = 0.2
"""Probability of stochastic depth in the last block; it rises linearly from 0 in the first."""

PAPERS = {
    "EfficientNetV2: Smaller Models and Faster Training. Tan, Le 2021, arXiv:2104.00298.": (
        "efficientnet_v2_s",
        "efficientnet_v2_m",
        "efficientnet_v2_l",
    ),
}
"""Papers of the variants that are not from the paper in the first line above."""


class FanOutConv2d(CPUConv2d):
    """Convolution with equal padding on all sides, initialised as in the authors' code in one pass."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, step: Step, groups: int) -> None:
        padding = step.dilation * (kernel_size // 2)
        super().__init__(
            in_channels, out_channels, kernel_size, step.stride, padding, step.dilation, groups=groups, bias=False
        )

    def reset_parameters(self) -> None:
        fan_out = self.out_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]
        nn.init.normal_(self.weight, 0, math.sqrt(2 / fan_out))


class FusedInvertedResidual(Residual):
    """V2's block for early stages: one full convolution replaces the widening and the depthwise one; no gate."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        step: Step,
        *,
        kernel_size: int,
        expanded: int,
        activation: type[nn.Module],
        unit: partial[ConvNorm],
        drop: float,
    ) -> None:
        if expanded == in_channels:
            layers = [unit(in_channels, out_channels, kernel_size, step, activation=activation)]
        else:
            layers = [
                unit(in_channels, expanded, kernel_size, step, activation=activation),
                unit(expanded, out_channels),
            ]
        super().__init__(layers, in_channels, out_channels, step, drop)


class Stage(NamedTuple):
    """Blocks that are equal except the first, which has the stride and changes the channels."""

    fused: bool
    ratio: int
    """Channels inside a block per input channel."""
    kernel_size: int
    stride: int
    out_channels: int
    depth: int


class Design(NamedTuple):
    """A row of the table of networks."""

    stages: tuple[Stage, ...]
    stem: int
    head: int
    """Output channels of the stem and of the last 1x1 convolution."""
    input_size: int
    dropout: float
    eps: float = 1e-5
    momentum: float = 0.1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    se_reduction: int = 4
    """Input channels of a block per channel that its gate squeezes them to; 0: no gates."""
    activation: type[nn.Module] = nn.SiLU
    conv: type[FanOutConv2d] = FanOutConv2d


B0 = (
    Stage(False, 1, 3, 1, 16, 1),
    Stage(False, 6, 3, 2, 24, 2),
    Stage(False, 6, 5, 2, 40, 2),
    Stage(False, 6, 3, 2, 80, 3),
    Stage(False, 6, 5, 1, 112, 3),
    Stage(False, 6, 5, 2, 192, 4),
    Stage(False, 6, 3, 1, 320, 1),
)

V2_S = (
    Stage(True, 1, 3, 1, 24, 2),
    Stage(True, 4, 3, 2, 48, 4),
    Stage(True, 4, 3, 2, 64, 4),
    Stage(False, 4, 3, 2, 128, 6),
    Stage(False, 6, 3, 1, 160, 9),
    Stage(False, 6, 3, 2, 256, 15),
)

V2_M = (
    Stage(True, 1, 3, 1, 24, 3),
    Stage(True, 4, 3, 2, 48, 5),
    Stage(True, 4, 3, 2, 80, 5),
    Stage(False, 4, 3, 2, 160, 7),
    Stage(False, 6, 3, 1, 176, 14),
    Stage(False, 6, 3, 2, 304, 18),
    Stage(False, 6, 3, 1, 512, 5),
)

V2_L = (
    Stage(True, 1, 3, 1, 32, 4),
    Stage(True, 4, 3, 2, 64, 7),
    Stage(True, 4, 3, 2, 96, 7),
    Stage(False, 4, 3, 2, 192, 10),
    Stage(False, 6, 3, 1, 224, 19),
    Stage(False, 6, 3, 2, 384, 25),
    Stage(False, 6, 3, 1, 640, 7),
)


def scaled(
    width: float, depth: float, input_size: int, dropout: float, eps: float = 1e-5, momentum: float = 0.1
) -> Design:
    """B0 by the paper's compound scaling: wider, deeper, for larger images."""
    stages = tuple(
        stage._replace(out_channels=make_divisible(stage.out_channels * width), depth=math.ceil(stage.depth * depth))
        for stage in B0
    )
    return Design(stages, make_divisible(32 * width), 4 * stages[-1].out_channels, input_size, dropout, eps, momentum)


class Coefficients(NamedTuple):
    """What B0's depth, width and resolution are multiplied by."""

    depth: float
    width: float
    resolution: float


def compound(phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> Coefficients:
    """The paper's equation 3: all three dimensions by one coefficient phi."""
    return Coefficients(alpha**phi, beta**phi, gamma**phi)


class EfficientNet(InvertedResidualNet):
    """EfficientNet-B0 to B7, V2-S / M / L; maps at strides 2, 4, 8, 16 from the stages and at 32 from the 1x1 head.

    Raises:
        ValueError: scaling is asked of another variant than efficientnet_b0, or by a coefficient that is not positive.
    """

    variants: ClassVar[dict[str, Design]] = {
        "efficientnet_b0": scaled(1.0, 1.0, 224, 0.2),
        "efficientnet_b1": scaled(1.0, 1.1, 240, 0.2),
        "efficientnet_b2": scaled(1.1, 1.2, 288, 0.3),
        "efficientnet_b3": scaled(1.2, 1.4, 300, 0.3),
        "efficientnet_b4": scaled(1.4, 1.8, 380, 0.4),
        "efficientnet_b5": scaled(1.6, 2.2, 456, 0.4, eps=1e-3, momentum=0.01),
        "efficientnet_b6": scaled(1.8, 2.6, 528, 0.5, eps=1e-3, momentum=0.01),
        "efficientnet_b7": scaled(2.0, 3.1, 600, 0.5, eps=1e-3, momentum=0.01),
        "efficientnet_v2_s": Design(V2_S, 24, 1280, 384, 0.2, eps=1e-3),
        "efficientnet_v2_m": Design(V2_M, 24, 1280, 480, 0.3, eps=1e-3),
        "efficientnet_v2_l": Design(V2_L, 32, 1280, 480, 0.4, eps=1e-3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    }

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        phi: float = 0.0,
        alpha: float = 1.2,
        beta: float = 1.1,
        gamma: float = 1.15,
        depth: float | None = None,
        width: float | None = None,
        resolution: float | None = None,
        se_reduction: int | None = None,
    ) -> None:
        super().__init__(variant)
        design = self.variants[variant]
        for name, base in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if base <= 0:
                raise ValueError(
                    f"{name} is {base:g}; it is the base of a power, give a number above 0, 1 for no scaling"
                )
        chosen = compound(phi, alpha, beta, gamma)
        alone = {"depth": depth, "width": width, "resolution": resolution}
        chosen = chosen._replace(**{name: value for name, value in alone.items() if value is not None})
        if chosen != Coefficients(1, 1, 1):
            design = rescaled(variant, design, chosen)
        if se_reduction is not None:
            check_reduction(se_reduction)
            design = design._replace(se_reduction=se_reduction)
        self.changed_options = changes(
            scaling=(chosen, Coefficients(1, 1, 1)),
            se_reduction=(design.se_reduction, self.variants[variant].se_reduction),
        )
        self.input_size, self.dropout = design.input_size, design.dropout
        self.mean, self.std = design.mean, design.std
        norm = partial(nn.BatchNorm2d, eps=design.eps, momentum=design.momentum)
        unit = partial(ConvNorm, norm=norm, conv=design.conv)
        steps = atrous_steps((2, *(stage.stride for stage in design.stages), 1), output_stride)
        layers: list[nn.Module] = [unit(in_channels, design.stem, 3, steps[0], activation=design.activation)]
        channels = [design.stem]
        blocks, before = sum(stage.depth for stage in design.stages), 0
        for stage, step in zip(design.stages, steps[1:-1], strict=True):
            drops = [LAST_DROP * (before + i) / blocks for i in range(stage.depth)]
            layers.append(make_stage(design, stage, channels[-1], step, unit, drops))
            channels.append(stage.out_channels)
            before += stage.depth
        layers.append(unit(channels[-1], design.head, activation=design.activation))
        self.assemble(layers, [*channels, design.head], steps)
        gates = [module for module in self.modules() if isinstance(module, SqueezeExcitation)]
        self.init_weights(conv for gate in gates for conv in (gate.fc1, gate.fc2))
        self.load(weights)

    def classifier(self, num_classes: int) -> nn.Module:
        linear = nn.Linear(self.channels[-1], num_classes)
        bound = 1 / math.sqrt(max(num_classes, IMAGENET_CLASSES))
        nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.zeros_(linear.bias)
        return PooledClassifier("classifier", nn.Sequential(nn.Dropout(self.dropout), linear))


def rescaled(variant: str, design: Design, coefficients: Coefficients) -> Design:
    """B0 under other coefficients, with the dropout and norms of B0.

    Raises:
        ValueError: the variant is another, which is scaled already, or a coefficient is not positive.
    """
    if variant != "efficientnet_b0":
        raise ValueError(
            f"phi, depth, width and resolution scale efficientnet_b0; {variant} is another network, leave them out"
        )
    for name, value in coefficients._asdict().items():
        if value <= 0:
            raise ValueError(f"{name} is {value:g}; it multiplies that of efficientnet_b0, give a number above 0")
    depth, width, resolution = coefficients
    return scaled(width, depth, round(design.input_size * resolution), design.dropout)


def gate_of(design: Design, in_channels: int, expanded: int) -> SqueezeExcitation | None:
    """The gate of a block, squeezed relative to the block's input; None without gates."""
    if not design.se_reduction:
        return None
    return SqueezeExcitation(expanded, max(1, in_channels // design.se_reduction), design.activation)


def make_stage(
    design: Design, stage: Stage, in_channels: int, step: Step, unit: partial[ConvNorm], drops: list[float]
) -> nn.Sequential:
    """One block per drop probability; the first has the stage's stride."""
    blocks: list[nn.Module] = []
    for drop in drops:
        expanded = stage.ratio * in_channels
        if stage.fused:
            block: Residual = FusedInvertedResidual(
                in_channels,
                stage.out_channels,
                step,
                kernel_size=stage.kernel_size,
                expanded=expanded,
                activation=design.activation,
                unit=unit,
                drop=drop,
            )
        else:
            block = InvertedResidual(
                in_channels,
                stage.out_channels,
                step,
                kernel_size=stage.kernel_size,
                expanded=expanded,
                activation=design.activation,
                unit=unit,
                gate=gate_of(design, in_channels, expanded),
                drop=drop,
            )
        blocks.append(block)
        in_channels, step = stage.out_channels, step.rest
    return nn.Sequential(*blocks)
