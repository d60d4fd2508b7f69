"""Xception: Deep Learning with Depthwise Separable Convolutions. Chollet 2016, arXiv:1610.02357.

The network of the paper's figure 5: residual blocks of depthwise separable convolutions, with max pools for strides.
The two convolutions of the stem are unpadded, so the finest map is three pixels smaller than half the image. The paper
gives no initialisation; here it is that of He et al. 2015. `se_reduction` = r puts a squeeze-and-excitation gate on
each residual branch; `se` is short for r = 16.

The steps from an Inception module to a separable convolution (sections 1.1, 1.2 and 4.7) are options; the published
network has the defaults:

- `order`: "depthwise" has the 3x3 convolution of each channel first, as the published network; "pointwise" has the 1x1
  convolution first, as an Inception module.
- `segments` = n: the 3x3 convolution works on n equal segments of the channels (figure 3; 1 is a full convolution); 0
  on each channel by itself, the "extreme" form (figure 4).
- `between`: "none", "relu" or "elu", the activation between the two convolutions (figure 10).
- `middle`: the number of blocks in the middle flow, 8 in the paper.

Loads the author's weights as timm publishes them under
legacy_xception (299 x 299 images).
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone, changes
from backbones.classifiers import PooledClassifier
from backbones.pooling import Pool2d
from backbones.squeeze_excitation import SqueezeExcitation, make_gate, reduction_of


class Style(NamedTuple):
    """Options that all separable convolutions and blocks share."""

    order: Literal["depthwise", "pointwise"] = "depthwise"
    segments: int = 0
    between: Literal["none", "relu", "elu"] = "none"
    se_reduction: int = 0

    def check(self) -> None:
        """Refuse values that are not described above."""
        if self.order not in ("depthwise", "pointwise"):
            raise ValueError(f"order is {self.order!r}; give depthwise (3x3 first) or pointwise (1x1 first)")
        if self.between not in ACTIVATIONS:
            raise ValueError(f"between is {self.between!r}; give {', '.join(ACTIVATIONS)}")
        if self.segments not in (0, 1, 2, 4, 8):  # what divides all widths
            raise ValueError(
                f"segments is {self.segments}; the widths 64 to 2048, among them 728, are divisible by 1, 2, 4 and 8: "
                "give one of these, or 0 for each channel by itself"
            )


ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "elu": nn.ELU}


class SeparableConv(nn.Module):
    """3x3 on each channel or segment separately, and 1x1 across channels, in the order and style given."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int, style: Style) -> None:
        super().__init__()
        self.pointwise_first = style.order == "pointwise"
        width = out_channels if self.pointwise_first else in_channels
        groups = style.segments or width
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.between = ACTIVATIONS[style.between]()

    def forward(self, x: Tensor) -> Tensor:
        if self.pointwise_first:
            return self.conv1(self.between(self.pointwise(x)))
        return self.pointwise(self.between(self.conv1(x)))


class Block(nn.Module):
    """Separable convolutions from width to width, a max pool if the block has a stride, and the residual sum.

    The sum is not activated; the first ReLU of the next block is on its residual branch only.
    """

    def __init__(self, widths: tuple[int, ...], step: Step, style: Style, *, relu_first: bool = True) -> None:
        super().__init__()
        in_channels, out_channels = widths[0], widths[-1]
        strides = step.native_stride > 1
        self.skip: nn.Module = nn.Identity()
        self.skipbn: nn.Module = nn.Identity()
        if strides or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, step.stride, bias=False)
            self.skipbn = nn.BatchNorm2d(out_channels)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            if i > 0 or relu_first:
                layers.append(nn.ReLU(inplace=i > 0))  # the first one's input is needed by the shortcut
            layers += [SeparableConv(a, b, step.dilation, style), nn.BatchNorm2d(b)]
        if strides:
            layers.append(Pool2d("max", 3, step, padding=1))
        self.rep = nn.Sequential(*layers)
        self.se = make_gate(out_channels, style.se_reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.rep(x)) + self.skipbn(self.skip(x))


def middle_names(number: int) -> list[str]:
    """Names of the blocks in the middle flow; block12, after the published eight, belongs to the exit flow."""
    return [f"block{i}" if i < 12 else f"middle{i - 3}" for i in range(4, 4 + number)]


class Xception(Backbone):
    """Chollet's Xception; maps at strides 2, 4, 8, 16, 32.

    They are the outputs of the stem, the activated sums of blocks 1, 2 and of the last block in the middle flow (block
    11), and the output of the last convolution.

    Raises:
        ValueError: an option has a value that is not described above.
    """

    input_size = 299
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    optional_modules = (SqueezeExcitation,)
    min_size = 7
    cropped_pixels = 5
    first_centres = (3, 3, 3, 3, 3)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se: bool = False,
        se_reduction: int = 0,
        order: Literal["depthwise", "pointwise"] = "depthwise",
        segments: int = 0,
        between: Literal["none", "relu", "elu"] = "none",
        middle: int = 8,
    ) -> None:
        super().__init__(variant)
        style = Style(order, segments, between, reduction_of(se, se_reduction))
        style.check()
        if middle < 0:
            raise ValueError(f"middle is {middle}; it is the number of blocks in the middle flow, give 0 or more")
        self.middle = middle_names(middle)
        self.changed_options = changes(
            order=(order, "depthwise"), segments=(segments, 0), between=(between, "none"), middle=(middle, 8)
        )
        stem, step1, step2, step3, step12 = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.conv1 = nn.Conv2d(in_channels, 32, 3, stem.stride, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = Block((64, 128, 128), step1, style, relu_first=False)
        self.block2 = Block((128, 256, 256), step2, style)
        self.block3 = Block((256, 728, 728), step3, style)
        for name in self.middle:
            self.add_module(name, Block((728, 728, 728, 728), step3.rest, style))
        self.block12 = Block((728, 728, 1024), step12, style)
        self.conv3 = SeparableConv(1024, 1536, step12.dilation_after, style)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv(1536, 2048, step12.dilation_after, style)
        self.bn4 = nn.BatchNorm2d(2048)
        self.channels = (64, 128, 256, 728, 2048)
        self.reductions = tuple(step.reduction for step in (stem, step1, step2, step3, step12))
        self.init_weights()
        # A depthwise filter reads one channel and writes one; by fan-out it would count all of the layer's.
        self.init_weights((m.conv1 for m in self.modules() if isinstance(m, SeparableConv)), mode="fan_in")
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        c1 = self.relu(self.bn2(self.conv2(x)))
        c2 = self.block1(c1)
        c3 = self.block2(c2)
        c4 = self.block3(c3)
        for name in self.middle:
            c4 = getattr(self, name)(c4)
        x = self.relu(self.bn3(self.conv3(self.block12(c4))))
        c5 = self.relu(self.bn4(self.conv4(x)))
        return [c1, F.relu(c2), F.relu(c3), F.relu(c4), c5]

    def classifier(self, num_classes: int) -> nn.Module:
        """The paper's: global average, dropout 0.5, one linear layer."""
        return PooledClassifier("fc", nn.Linear(2048, num_classes), dropout=0.5)

    def published_url(self) -> str:
        return "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/xception-43020ad28.pth"

    def published_top1(self) -> float:
        """From timm's result table."""
        return 79.06
