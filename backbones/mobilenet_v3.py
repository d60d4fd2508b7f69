"""Searching for MobileNetV3. Howard et al. 2019, arXiv:1905.02244.

Difference from the paper: squeeze-and-excitation squeezes to a quarter (`se_reduction` = 4; 0 leaves the gates out)
rounded to a multiple of 8, as in the authors' code and in the published weights. The paper gives no initialisation;
convolutions are initialised by He et al. 2015 (fan out), as in torchvision. Loads torchvision's checkpoints.
"""

from functools import partial
from typing import NamedTuple

from torch import nn

from backbones.atrous import atrous_steps
from backbones.backbone import changes
from backbones.classifiers import PooledClassifier
from backbones.inverted_residual import (
    ConvNorm,
    InvertedResidual,
    InvertedResidualNet,
    make_divisible,
    small_linear,
)
from backbones.squeeze_excitation import SqueezeExcitation, check_reduction


class Row(NamedTuple):
    """One block, as the paper's tables 1 and 2 give it."""

    kernel_size: int
    expanded: int
    out_channels: int
    squeezes: bool
    activation: type[nn.Module]
    stride: int


RE, HS = nn.ReLU, nn.Hardswish

SMALL = (
    Row(3, 16, 16, True, RE, 2),
    Row(3, 72, 24, False, RE, 2),
    Row(3, 88, 24, False, RE, 1),
    Row(5, 96, 40, True, HS, 2),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 120, 48, True, HS, 1),
    Row(5, 144, 48, True, HS, 1),
    Row(5, 288, 96, True, HS, 2),
    Row(5, 576, 96, True, HS, 1),
    Row(5, 576, 96, True, HS, 1),
)

LARGE = (
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 2),
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
)

VARIANTS: dict[str, tuple[tuple[Row, ...], int]] = {
    "mobilenet_v3_small": (SMALL, 1024),
    "mobilenet_v3_large": (LARGE, 1280),
}
"""Blocks, and the classifier's hidden features."""


class MobileNetV3(InvertedResidualNet):
    """MobileNetV3-Small / Large; maps at strides 2, 4, 8, 16 from the blocks and at 32 from the 1x1 head.

    The first block of Small has stride 2, so its map at stride 2 is the stem's.
    """

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se_reduction: int = 4,
    ) -> None:
        super().__init__(variant)
        check_reduction(se_reduction)
        self.changed_options = changes(se_reduction=(se_reduction, 4))
        rows, self.hidden = VARIANTS[variant]
        unit = partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01))
        steps = atrous_steps((2, *(row.stride for row in rows), 1), output_stride)
        layers: list[nn.Module] = [unit(in_channels, 16, 3, steps[0], activation=nn.Hardswish)]
        channels = [16]
        for row, step in zip(rows, steps[1:-1], strict=True):
            gate = None
            if row.squeezes and se_reduction:
                squeezed = make_divisible(row.expanded / se_reduction)
                gate = SqueezeExcitation(row.expanded, squeezed, gate_activation=nn.Hardsigmoid)
            layers.append(
                InvertedResidual(
                    channels[-1],
                    row.out_channels,
                    step,
                    kernel_size=row.kernel_size,
                    expanded=row.expanded,
                    activation=row.activation,
                    unit=unit,
                    gate=gate,
                )
            )
            channels.append(row.out_channels)
        head = 6 * channels[-1]
        layers.append(unit(channels[-1], head, activation=nn.Hardswish))
        self.assemble(layers, [*channels, head], steps)
        self.init_weights()
        self.load(weights)

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier(
            "classifier",
            nn.Sequential(
                small_linear(self.channels[-1], self.hidden),
                nn.Hardswish(inplace=True),
                nn.Dropout(0.2),
                small_linear(self.hidden, num_classes),
            ),
        )
