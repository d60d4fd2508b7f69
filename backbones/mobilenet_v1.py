"""MobileNets: Efficient CNNs for Mobile Vision Applications. Howard et al. 2017, arXiv:1704.04861.

A depthwise 3x3 and a pointwise 1x1 convolution replace each full convolution. The paper's width multiplier is in the
name: mobilenet_v1_025 has a quarter of each layer's channels, mobilenet_v1 all, mobilenet_v1_125 a quarter more; the
option `width` is any other. Its resolution multiplier is the image size: the paper trains at 224, 192, 160 and 128.
`full` has one full 3x3 convolution in each block, as the Conv MobileNet that table 4 compares with.
`se_reduction` puts a squeeze-and-excitation gate after each block, which gives the SE-MobileNet of arXiv:1709.01507.

Differences from the paper: ReLU6 for ReLU, as in the authors' TensorFlow code and in the published weights. The paper
gives no initialisation; as in the authors' code, all weights are drawn from a normal of standard deviation 0.09,
truncated at two standard deviations. Loads timm's checkpoints, which exist for the widths 1.0 and 1.25.
"""

from itertools import pairwise

from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone, changes
from backbones.classifiers import PooledClassifier
from backbones.inverted_residual import check_width
from backbones.squeeze_excitation import SqueezeExcitation, make_gate

VARIANTS: dict[str, float] = {
    "mobilenet_v1_025": 0.25,
    "mobilenet_v1_050": 0.5,
    "mobilenet_v1_075": 0.75,
    "mobilenet_v1": 1.0,
    "mobilenet_v1_125": 1.25,
}
"""Width multipliers."""

STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
"""Channels, blocks and stride of each stage."""

PUBLISHED: dict[str, tuple[str, float]] = {
    "mobilenet_v1": ("timm/mobilenetv1_100.ra4_e3600_r224_in1k", 75.388),
    "mobilenet_v1_125": ("timm/mobilenetv1_125.ra4_e3600_r224_in1k", 76.920),
}
"""Name on the Hugging Face hub, and top-1 at 224 pixels from timm's results/results-imagenet.csv."""


class FullBlock(nn.Module):
    """A full 3x3 convolution with batch norm and ReLU6."""

    def __init__(self, in_channels: int, out_channels: int, step: Step, se_reduction: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, 3, step.stride, padding=step.dilation, dilation=step.dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU6(inplace=True)
        self.se = make_gate(out_channels, se_reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.relu(self.bn(self.conv(x))))


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, each with batch norm and ReLU6."""

    def __init__(self, in_channels: int, out_channels: int, step: Step, se_reduction: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            in_channels,
            in_channels,
            3,
            step.stride,
            padding=step.dilation,
            dilation=step.dilation,
            groups=in_channels,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU6(inplace=True)
        self.se = make_gate(out_channels, se_reduction)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv_dw(x)))
        return self.se(self.relu(self.bn2(self.conv_pw(x))))


class MobileNetV1(Backbone):
    """MobileNetV1 at any width; maps at strides 2, 4, 8, 16, 32, one per stage.

    Raises:
        ValueError: `width` leaves a layer without channels.
    """

    optional_modules = (SqueezeExcitation,)
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        width: float | None = None,
        se_reduction: int = 0,
        full: bool = False,
    ) -> None:
        super().__init__(variant)
        width = check_width(VARIANTS[variant] if width is None else width, least=1 / 32)
        self.changed_options = changes(width=(width, VARIANTS[variant]), full=(full, False))
        stem, *steps = atrous_steps((2, *(stride for _, _, stride in STAGES)), output_stride)
        widths = [round(channels * width) for channels in (32, *(channels for channels, _, _ in STAGES))]
        self.conv_stem = nn.Conv2d(in_channels, widths[0], 3, stem.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU6(inplace=True)
        self.blocks = nn.Sequential(
            *(
                make_stage(FullBlock if full else SeparableBlock, before, after, depth, step, se_reduction)
                for (before, after), (_, depth, _), step in zip(pairwise(widths), STAGES, steps, strict=True)
            )
        )
        self.channels = tuple(widths[1:])
        self.reductions = tuple(step.reduction for step in steps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_truncated(module.weight)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv_stem(x)))
        maps = []
        for stage in self.blocks:
            x = stage(x)
            maps.append(x)
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        linear = nn.Linear(self.channels[-1], num_classes)
        init_truncated(linear.weight)
        nn.init.zeros_(linear.bias)
        return PooledClassifier("classifier", linear)

    def published_url(self) -> str:
        if self.variant not in PUBLISHED:
            return super().published_url()  # which says that there are none
        return f"https://huggingface.co/{PUBLISHED[self.variant][0]}/resolve/main/model.safetensors"

    def published_top1(self) -> float | None:
        return PUBLISHED[self.variant][1] if self.variant in PUBLISHED else None


def make_stage(
    block: type[FullBlock | SeparableBlock],
    in_channels: int,
    out_channels: int,
    depth: int,
    step: Step,
    se_reduction: int,
) -> nn.Sequential:
    """`depth` blocks, the first of which has the stage's stride."""
    blocks = [block(in_channels, out_channels, step, se_reduction)]
    blocks += [block(out_channels, out_channels, step.rest, se_reduction) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def init_truncated(weight: Tensor) -> None:
    nn.init.trunc_normal_(weight, std=0.09, a=-0.18, b=0.18)
