"""Xception: Deep Learning with Depthwise Separable Convolutions. Chollet 2016, arXiv:1610.02357.

The network of the paper's figure 5: residual blocks of depthwise separable convolutions, with max pools for strides.
As in the published network, the depthwise convolution comes first; the paper's "extreme" Inception module has the
pointwise one first. The two convolutions of the stem are unpadded, so the finest map is three pixels smaller than half
the image. The paper gives no initialisation; here it is that of He et al. 2015. `se` scales the channels of each
residual branch by squeeze-and-excitation before the sum. Loads the author's weights as timm publishes them under
legacy_xception (299 x 299 images).
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.pooling import Pool2d
from backbones.squeeze_excitation import SqueezeExcitation


class SeparableConv(nn.Module):
    """3x3 on each channel separately, then 1x1 across channels, without a non-linearity between them."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Separable convolutions from width to width, a max pool if the block has a stride, and the residual sum.

    The sum is not activated; the first ReLU of the next block is on its residual branch only.
    """

    def __init__(self, widths: tuple[int, ...], step: Step, *, se: bool, relu_first: bool = True) -> None:
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
            layers += [SeparableConv(a, b, step.dilation), nn.BatchNorm2d(b)]
        if strides:
            layers.append(Pool2d("max", 3, step, padding=1))
        self.rep = nn.Sequential(*layers)
        self.se = SqueezeExcitation(out_channels, out_channels // 16) if se else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.rep(x)) + self.skipbn(self.skip(x))


MIDDLE = tuple(f"block{i}" for i in range(4, 12))


class Xception(Backbone):
    """Chollet's Xception; maps at strides 2, 4, 8, 16, 32.

    They are the outputs of the stem, the activated sums of blocks 1, 2 and 11, and the output of the last convolution.
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
    ) -> None:
        super().__init__(variant)
        stem, step1, step2, step3, step12 = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.conv1 = nn.Conv2d(in_channels, 32, 3, stem.stride, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = Block((64, 128, 128), step1, se=se, relu_first=False)
        self.block2 = Block((128, 256, 256), step2, se=se)
        self.block3 = Block((256, 728, 728), step3, se=se)
        for name in MIDDLE:
            self.add_module(name, Block((728, 728, 728, 728), step3.rest, se=se))
        self.block12 = Block((728, 728, 1024), step12, se=se)
        self.conv3 = SeparableConv(1024, 1536, step12.dilation_after)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv(1536, 2048, step12.dilation_after)
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
        for name in MIDDLE:
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
