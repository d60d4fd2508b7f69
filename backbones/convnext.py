"""A ConvNet for the 2020s. Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, arXiv:2201.03545.

A ResNet modernised step by step towards a Swin transformer: a 4x4 patch stem, 7x7 depthwise convolutions, inverted
bottlenecks, layer norms and GELU. No differences from the paper. Convolutions and linear layers are drawn from a
truncated normal of standard deviation 0.02 with zero biases, layer scales are 1e-6; residual branches are dropped in
training at the published rates, growing linearly with depth. The maps are the outputs of the stages; the norm after the
last belongs to the classifier. Loads torchvision's checkpoints.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.layer_norm import LayerNorm2d
from backbones.transformer_init import init_truncated_normal, uninitialised_linear


class PatchConv2d(nn.Conv2d):
    """2x2 convolution over disjoint patches or, if its stride was replaced by dilation, over a patch at every pixel.

    An even kernel has no centre: its top-left tap keeps its position in the strided network, so padding is added at
    the right and bottom only.
    """

    def __init__(self, in_channels: int, out_channels: int, step: Step) -> None:
        super().__init__(in_channels, out_channels, 2, step.stride, dilation=step.dilation)
        self.padding_after = step.dilation if step.stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_after:
            x = F.pad(x, (0, self.padding_after, 0, self.padding_after))
        return super().forward(x)


class Block(nn.Module):
    """7x7 depthwise - norm - 1x1, four times wider - GELU - 1x1, scaled per channel and added to its input."""

    def __init__(self, channels: int, dilation: int, drop_rate: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=channels),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(channels, eps=1e-6),
            uninitialised_linear(channels, 4 * channels),
            nn.GELU(),
            uninitialised_linear(4 * channels, channels),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.stochastic_depth = StochasticDepth(drop_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))


class Variant(NamedTuple):
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    drop_rate: float
    """Probability with which the deepest block's branch is dropped for an image in training."""


VARIANTS = {
    "convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768), 0.1),
    "convnext_small": Variant((3, 3, 27, 3), (96, 192, 384, 768), 0.4),
    "convnext_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024), 0.5),
    "convnext_large": Variant((3, 3, 27, 3), (192, 384, 768, 1536), 0.5),
}


class ConvNeXt(Backbone):
    """ConvNeXt tiny / small / base / large: depthwise blocks in four stages; maps at strides 4, 8, 16, 32."""

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__(variant)
        depths, channels, drop_rate = VARIANTS[variant]
        steps = atrous_steps((4, 2, 2, 2), output_stride)
        drop_rates = iter(torch.linspace(0, drop_rate, sum(depths), device="cpu").tolist())
        self.features = nn.Sequential()
        for i, (depth, width, step) in enumerate(zip(depths, channels, steps, strict=True)):
            if i == 0:
                entry = nn.Sequential(nn.Conv2d(in_channels, width, 4, step.stride), LayerNorm2d(width))
            else:
                entry = nn.Sequential(LayerNorm2d(channels[i - 1]), PatchConv2d(channels[i - 1], width, step))
            stage = nn.Sequential(*(Block(width, step.dilation_after, next(drop_rates)) for _ in range(depth)))
            self.features.extend((entry, stage))
        self.channels = channels
        self.reductions = tuple(step.reduction for step in steps)
        self.first_centres = (1.5, 3.5, 7.5, 15.5)
        self.min_size = self.reductions[-1]
        init_truncated_normal(self)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for entry, stage in zip(self.features[::2], self.features[1::2], strict=True):
            x = stage(entry(x))
            maps.append(x)
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        """Global average pooling, layer norm, one linear layer."""
        width = self.channels[-1]
        layers = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Identity(), nn.Linear(width, num_classes))
        init_truncated_normal(layers)
        return PooledClassifier("classifier", layers)
