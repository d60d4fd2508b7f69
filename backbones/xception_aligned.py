"""Modified aligned Xception, the backbone of DeepLab v3+. Chen, Zhu, Papandreou, Schroff, Adam 2018, arXiv:1802.02611.

Xception-41, 65 and 71: Xception (arXiv:1610.02357) with a deeper middle, strided separable convolutions instead of max
pools, and batch norm also after each 3x3 depthwise convolution. Weights are drawn from N(0, 0.08), which has the
standard deviation of the distribution in DeepLab's own code (0.09, truncated at two standard deviations).
`se_reduction` = r puts a squeeze-and-excitation gate on each residual branch; `se` is short for r = 16. Loads DeepLab's
ImageNet weights as timm publishes them (299 x 299 images).
"""

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.squeeze_excitation import SqueezeExcitation, make_gate, reduction_of

BatchNorm = partial(nn.BatchNorm2d, eps=1e-3)


class ConvNorm(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = BatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SeparableConv(nn.Module):
    """3x3 on each channel separately, then 1x1 across channels, each with batch norm and, if `relu`, a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, relu: bool) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            in_channels, in_channels, 3, stride, dilation, dilation, groups=in_channels, bias=False
        )
        self.bn_dw = BatchNorm(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn_pw = BatchNorm(out_channels)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn_dw(self.conv_dw(x)))
        return self.act(self.bn_pw(self.conv_pw(x)))


class Block(nn.Module):
    """Three separable convolutions, the last of which has the stride, and the residual sum.

    `(B, C, H, W)` -> the block's output, and the activated input of its last convolution: the deepest map at the
    block's input resolution. A residual block activates before each convolution, the plain one (`residual=False`)
    inside them.
    """

    def __init__(
        self, in_channels: int, widths: tuple[int, int, int], step: Step, *, residual: bool, reduction: int
    ) -> None:
        super().__init__()
        self.residual = residual
        self.strides = step.native_stride > 1
        one, two, three = widths
        self.stack = nn.ModuleDict()
        self.stack["conv1"] = SeparableConv(in_channels, one, 1, step.dilation, not residual)
        self.stack["conv2"] = SeparableConv(one, two, 1, step.dilation, not residual)
        self.stack["conv3"] = SeparableConv(two, three, step.stride, step.dilation, not residual)
        self.shortcut: nn.Module = nn.Identity()
        if residual and (self.strides or in_channels != three):
            self.shortcut = ConvNorm(in_channels, three, 1, step.stride)
        self.se = make_gate(three, reduction if residual else 0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.residual:
            tap = self.stack["conv2"](self.stack["conv1"](x))
            return self.stack["conv3"](tap), tap
        y = self.stack["conv1"](F.relu(x))
        tap = F.relu(self.stack["conv2"](F.relu(y, inplace=True)), inplace=True)
        return self.se(self.stack["conv3"](tap)) + self.shortcut(x), tap


ENTRY = ((128, 2), (256, 2), (728, 2))
VARIANTS: dict[str, tuple[tuple[tuple[int, int], ...], int, float]] = {
    # channels and stride of the entry blocks, number of middle blocks, top-1 of the published weights
    "xception41": (ENTRY, 8, 78.50),
    "xception65": (ENTRY, 16, 79.56),
    "xception71": (((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), 16, 79.87),
}


class XceptionAligned(Backbone):
    """Xception-41 / 65 / 71; maps at strides 2, 4, 8, 16, 32.

    Each map except the last is taken inside the block that downsamples it, just before the strided convolution: this is
    the deepest map at that stride and, at stride 4, the one that DeepLabv3+'s decoder uses.
    """

    input_size = 299
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    optional_modules = (SqueezeExcitation,)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se: bool = False,
        se_reduction: int = 0,
    ) -> None:
        super().__init__(variant)
        entry, depth, _ = VARIANTS[variant]
        plan = [((width, width, width), stride) for width, stride in entry]
        plan += [((728, 728, 728), 1)] * depth
        plan += [((728, 1024, 1024), 2), ((1536, 1536, 2048), 1)]
        stem, *steps = atrous_steps((2, *(stride for _, stride in plan)), output_stride)
        self.stem = nn.ModuleList([ConvNorm(in_channels, 32, 3, stem.stride), ConvNorm(32, 64, 3)])
        self.blocks = nn.ModuleList()
        channels, reductions, c, reduction = [], [], 64, stem.reduction
        for i, ((widths, stride), step) in enumerate(zip(plan, steps, strict=True)):
            self.blocks.append(
                Block(c, widths, step, residual=i < len(plan) - 1, reduction=reduction_of(se, se_reduction))
            )
            if stride > 1:
                channels.append(widths[1])
                reductions.append(reduction)
            c, reduction = widths[-1], step.reduction
        self.channels = (*channels, c)
        self.reductions = (*reductions, reduction)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.08)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.stem:
            x = F.relu(layer(x), inplace=True)
        maps = []
        for block in self.blocks:
            x, tap = block(x)
            if block.strides:
                maps.append(tap)
        return [*maps, x]

    def classifier(self, num_classes: int) -> nn.Module:
        """Global average, dropout 0.5 as in DeepLab's code, one linear layer."""
        head = PooledClassifier("fc", nn.Linear(2048, num_classes), dropout=0.5)
        return nn.Sequential(OrderedDict(head=head))

    def published_url(self) -> str:
        return f"https://huggingface.co/timm/{self.variant}.tf_in1k/resolve/main/model.safetensors"

    def published_top1(self) -> float:
        """From timm's result table."""
        return VARIANTS[self.variant][2]
