"""Densely Connected Convolutional Networks. Huang, Liu, van der Maaten, Weinberger 2016, arXiv:1608.06993.

DenseNet-BC: in a dense block every layer reads the maps of all layers before it; a transition between blocks halves
channels and resolution. Starts as the paper says, after He et al. 2015. Loads torchvision's checkpoints, whose older
names (`norm.1` for `norm1`) are renamed.

The concatenations make memory in training grow with the square of a block's depth. `memory_efficient` drops them and
concatenates again in the backward pass (Pleiss et al. 2017, arXiv:1707.06990): the same gradients and statistics from
about half the kept memory, for about a quarter more time (densenet121).
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.pooling import Pool2d
from backbones.state_dicts import StateDict


class DenseLayer(nn.Module):
    """Norm - ReLU - 1x1 to four times the growth, norm - ReLU - 3x3: list of maps -> `(B, growth, H, W)`."""

    def __init__(self, in_channels: int, growth: int, dilation: int, memory_efficient: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=dilation, dilation=dilation, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.memory_efficient = memory_efficient

    def bottleneck(self, *features: Tensor) -> Tensor:
        """The part whose inputs are large: all earlier maps -> `(B, 4 * growth, H, W)`."""
        return self.conv1(self.relu(self.norm1(torch.cat(features, 1))))

    def forward(self, features: list[Tensor]) -> Tensor:
        if self.memory_efficient and torch.is_grad_enabled():
            y = checkpoint(
                self.bottleneck,
                *features,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), statistics_held(self.norm1)),
            )
        else:
            y = self.bottleneck(*features)
        return self.conv2(self.relu(self.norm2(y)))


@contextmanager
def statistics_held(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Computing a batch a second time must not count it twice in the running statistics."""
    momentum, norm.momentum = norm.momentum, 0.0
    try:
        yield
    finally:
        norm.momentum = momentum


class DenseBlock(nn.Module):
    """`depth` dense layers: `(B, C, H, W)` -> `(B, C + depth * growth, H, W)`."""

    def __init__(self, in_channels: int, depth: int, growth: int, dilation: int, memory_efficient: bool) -> None:
        super().__init__()
        for i in range(depth):
            layer = DenseLayer(in_channels + i * growth, growth, dilation, memory_efficient)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


def transition(in_channels: int, step: Step) -> nn.Sequential:
    """Half the channels at half the resolution, or what is left of that at `step`."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
            pool=Pool2d("average", 2, step),
        )
    )


VARIANTS: dict[str, tuple[int, int, tuple[int, int, int, int]]] = {
    # growth, channels of the first convolution, layers of each block
    "densenet121": (32, 64, (6, 12, 24, 16)),
    "densenet161": (48, 96, (6, 12, 36, 24)),
    "densenet169": (32, 64, (6, 12, 32, 32)),
    "densenet201": (32, 64, (6, 12, 48, 32)),
}


class DenseNet(Backbone):
    """DenseNet-121 / 161 / 169 / 201; maps at strides 2, 4, 8, 16, 32.

    The first map is the activated first convolution. The next three are what blocks 1 to 3 make, before the transition
    that halves them: raw concatenations, each transition's own norm not applied. The last is block 4's, normed and
    activated, as the classifier takes it.
    """

    min_size = 29

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(variant)
        growth, width, depths = VARIANTS[variant]
        stem, *steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.features = nn.ModuleDict()
        self.features["conv0"] = nn.Conv2d(in_channels, width, 7, stem.stride, padding=3, bias=False)
        self.features["norm0"] = nn.BatchNorm2d(width)
        self.features["pool0"] = nn.MaxPool2d(3, steps[0].stride, padding=1)
        channels = [width]
        for i, (depth, step) in enumerate(zip(depths, steps, strict=True)):
            if i > 0:
                self.features[f"transition{i}"] = transition(width, step)
                width //= 2
            self.features[f"denseblock{i + 1}"] = DenseBlock(width, depth, growth, step.after, memory_efficient)
            width += depth * growth
            channels.append(width)
        self.features["norm5"] = nn.BatchNorm2d(width)
        self.channels = tuple(channels)
        self.reductions = (stem.reduction, *(step.reduction for step in steps))
        self.first_centres = (0, 0, 2, 6, 14)
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        layers = self.features
        c1 = F.relu(layers["norm0"](layers["conv0"](x)), inplace=True)
        c2 = layers["denseblock1"](layers["pool0"](c1))
        c3 = layers["denseblock2"](layers["transition1"](c2))
        c4 = layers["denseblock3"](layers["transition2"](c3))
        c5 = layers["denseblock4"](layers["transition3"](c4))
        return [c1, c2, c3, c4, F.relu(layers["norm5"](c5), inplace=True)]

    def classifier(self, num_classes: int) -> nn.Module:
        linear = nn.Linear(self.channels[-1], num_classes)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=linear))

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """`denselayerN.norm.1.weight`, as the published files have it -> `denselayerN.norm1.weight`."""
        return {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key): value for key, value in state.items()
        }
