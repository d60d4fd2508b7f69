"""Densely Connected Convolutional Networks. Huang, Liu, van der Maaten, Weinberger 2016, arXiv:1608.06993.

DenseNet-BC: in a dense block every layer reads the maps of all layers before it; a transition between blocks halves
channels and resolution. Initialised by He et al. 2015, as in the paper. Loads torchvision's checkpoints, whose older
names (`norm.1` for `norm1`) are renamed.

The paper's hyper-parameters (section 3) are options: `growth` k, the maps that each layer adds; `compression` theta,
the part of the channels that a transition keeps, 0.5 in the published networks; `bottleneck`, the channels of each
layer's 1x1 convolution in units of k, 4 in the paper, 0 for layers that are BN-ReLU-3x3 alone; `layers` of each block.
The first convolution has 2 k channels, as in the paper. The networks for CIFAR are in `backbones.densenet_cifar`.
`se_reduction` puts a squeeze-and-excitation gate on what each layer adds, and `deformable` = n makes the 3x3
convolutions of the last n blocks deformable (`backbones.deformable`).

The stored concatenations make training memory grow with the square of a block's depth. `memory_efficient` does not
store them and concatenates again in the backward pass (Pleiss et al. 2017, arXiv:1707.06990): gradients and statistics
are the same, stored activations about half, the time about a quarter longer (densenet121).
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone, changes
from backbones.classifiers import PooledClassifier
from backbones.deformable import DeformableConv2d, Offsets, check_deformable
from backbones.frozen_statistics import frozen_batch_norm_statistics
from backbones.pooling import Pool2d
from backbones.squeeze_excitation import SqueezeExcitation, make_gate
from backbones.state_dicts import StateDict


class Design(NamedTuple):
    """What the layers of a dense block have in common."""

    growth: int
    """Maps that each layer adds."""
    bottleneck: int = 4
    """Channels of a layer's 1x1 convolution per map it adds; 0 leaves that convolution out."""
    compression: float = 0.5
    """Part of the channels that a transition keeps."""
    dropout: float = 0.0
    """Probability with which a value of a layer's new maps is set to zero."""
    se_reduction: int = 0
    memory_efficient: bool = False
    deformable: Literal[0, 1, 2] = 0
    """Version of the deformable convolutions; 0 for plain ones."""

    def check(self) -> None:
        """Refuse numbers that build no network."""
        if self.growth < 1:
            raise ValueError(f"growth is {self.growth}; it is the number of maps that each layer adds, give 1 or more")
        if self.bottleneck < 0:
            raise ValueError(f"bottleneck is {self.bottleneck}; give 0 (no 1x1 convolutions) or more, 4 in the paper")
        if not 0 < self.compression <= 1:
            raise ValueError(
                f"compression is {self.compression:g}; a transition keeps this part of its channels: give more than 0, "
                "at most 1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout:g}; it is a probability, give 0 or more, below 1")

    def compressed(self, channels: int) -> int:
        """The paper's floor(theta m), at least 1; the small addition makes 0.29 * 100 come out as 29."""
        return max(1, int(channels * self.compression + 1e-9))


class DenseLayer(nn.Module):
    """Norm - ReLU - 1x1 (only with bottlenecks), norm - ReLU - 3x3: list of maps -> `(B, growth, H, W)`."""

    def __init__(self, in_channels: int, design: Design, dilation: int) -> None:
        super().__init__()
        growth, inside = design.growth, design.bottleneck * design.growth
        self.norm1 = nn.BatchNorm2d(in_channels)
        if design.bottleneck:
            self.conv1 = nn.Conv2d(in_channels, inside, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(inside)
            self.conv2 = conv3x3(inside, growth, dilation, design.deformable)
        else:
            self.conv1 = conv3x3(in_channels, growth, dilation, design.deformable)
        self.has_bottleneck = design.bottleneck > 0
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(design.dropout) if design.dropout else nn.Identity()
        self.se = make_gate(growth, design.se_reduction)
        self.memory_efficient = design.memory_efficient

    def first(self, *features: Tensor) -> Tensor:
        """The layers that read the large concatenation: all earlier maps -> the output of the first convolution."""
        return self.conv1(self.relu(self.norm1(torch.cat(features, 1))))

    def forward(self, features: list[Tensor]) -> Tensor:
        if self.memory_efficient and torch.is_grad_enabled():
            y = checkpoint(
                self.first,
                *features,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), frozen_batch_norm_statistics(self.norm1)),
            )
        else:
            y = self.first(*features)
        if self.has_bottleneck:
            y = self.conv2(self.relu(self.norm2(y)))
        return self.se(self.dropout(y))


def conv3x3(in_channels: int, out_channels: int, dilation: int, deformable: Literal[0, 1, 2]) -> nn.Conv2d:
    if deformable:
        return DeformableConv2d(in_channels, out_channels, 1, dilation, 1, deformable)
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)


class DenseBlock(nn.Module):
    """`depth` dense layers: `(B, C, H, W)` -> `(B, C + depth * growth, H, W)`."""

    def __init__(self, in_channels: int, depth: int, design: Design, dilation: int) -> None:
        super().__init__()
        for i in range(depth):
            layer = DenseLayer(in_channels + i * design.growth, design, dilation)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


def transition(in_channels: int, out_channels: int, step: Step) -> nn.Sequential:
    """Compress the channels and, unless `step` replaces the stride by dilation, halve the resolution."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            pool=Pool2d("average", 2, step),
        )
    )


VARIANTS: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    # growth, layers of each block
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet161": (48, (6, 12, 36, 24)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
}


class DenseNet(Backbone):
    """DenseNet-121 / 161 / 169 / 201; maps at strides 2, 4, 8, 16, 32.

    The first map is the activated first convolution. The next three are the outputs of blocks 1 to 3 before the
    transition that halves them: concatenations without norm or activation, which belong to the transition. The last is
    that of block 4, normalised and activated, as the classifier reads it.

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
        growth: int | None = None,
        compression: float = 0.5,
        bottleneck: int = 4,
        layers: Sequence[int] | None = None,
        se_reduction: int = 0,
        deformable: int = 0,
        deformable_version: Literal[1, 2] = 2,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(variant)
        own_growth, own_layers = VARIANTS[variant]
        growth, depths = own_growth if growth is None else growth, tuple(own_layers if layers is None else layers)
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"layers is {list(depths)}; {variant} has 4 blocks, give each 1 or more layers")
        check_deformable(deformable, deformable_version, parts="blocks")
        plain = Design(growth, bottleneck, compression, 0.0, se_reduction, memory_efficient)
        plain.check()
        designs = (4 - deformable) * [plain] + deformable * [plain._replace(deformable=deformable_version)]
        self.changed_options = changes(
            growth=(growth, own_growth),
            compression=(compression, 0.5),
            bottleneck=(bottleneck, 4),
            layers=(depths, own_layers),
        )
        width = 2 * growth
        stem, *steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.features = nn.ModuleDict()
        self.features["conv0"] = nn.Conv2d(in_channels, width, 7, stem.stride, padding=3, bias=False)
        self.features["norm0"] = nn.BatchNorm2d(width)
        self.features["pool0"] = nn.MaxPool2d(3, steps[0].stride, padding=1)
        channels = [width]
        for i, (depth, step, design) in enumerate(zip(depths, steps, designs, strict=True)):
            if i > 0:
                kept = design.compressed(width)
                self.features[f"transition{i}"] = transition(width, kept, step)
                width = kept
            self.features[f"denseblock{i + 1}"] = DenseBlock(width, depth, design, step.dilation_after)
            width += depth * growth
            channels.append(width)
        self.features["norm5"] = nn.BatchNorm2d(width)
        self.channels = tuple(channels)
        self.reductions = (stem.reduction, *(step.reduction for step in steps))
        self.first_centres = (0, 0, 2, 6, 14)
        self.min_size = self.reductions[-1] - 3  # the stem's padding makes up for three pixels
        self.init_weights()
        for module in self.modules():
            if isinstance(module, Offsets):
                module.initialise()
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
        return PooledClassifier("classifier", linear)

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """`denselayerN.norm.1.weight`, as the published files have it -> `denselayerN.norm1.weight`."""
        return {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key): value for key, value in state.items()
        }
