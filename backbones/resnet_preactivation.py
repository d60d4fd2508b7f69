"""Identity Mappings in Deep Residual Networks. He, Zhang, Ren, Sun 2016, arXiv:1603.05027: the networks for ImageNet.

Batch norm and ReLU precede each convolution of a bottleneck, so that nothing but sums lies between the first block and
the last. ResNetV2-50, 101, 152 and 200; ResNet-200 is the deepest that ResNeXt is compared with (arXiv:1611.05431,
table 4). Batch norm and ReLU come once more after the last block, so all maps but the last are not activated. Where the
shape changes, the shortcut is a 1x1 convolution of the normalised and activated input. `se_reduction` puts a
squeeze-and-excitation gate on each residual.

Differences from the paper: the 3x3 convolution of a bottleneck has the stride, not the first 1x1, and no norm stands
between the first convolution and the first pool, both as in timm. Convolutions are initialised by He et al. 2015. Loads
timm's checkpoints resnetv2_50 and resnetv2_101; none are published for the others.
"""

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.squeeze_excitation import SqueezeExcitation, make_gate
from backbones.state_dicts import StateDict

VARIANTS = {
    "resnetv2_50": (3, 4, 6, 3),
    "resnetv2_101": (3, 4, 23, 3),
    "resnetv2_152": (3, 8, 36, 3),
    "resnetv2_200": (3, 24, 36, 3),
}
"""Blocks of each stage."""

PUBLISHED = {
    "resnetv2_50": "timm/resnetv2_50.a1h_in1k",
    "resnetv2_101": "timm/resnetv2_101.a1h_in1k",
}
"""Names on the Hugging Face hub."""


class PreActivationBottleneck(nn.Module):
    """norm - ReLU - 1x1 - norm - ReLU - 3x3 - norm - ReLU - 1x1, added to the identity or to a projection."""

    def __init__(self, in_channels: int, out_channels: int, step: Step, se_reduction: int) -> None:
        super().__init__()
        inside = out_channels // 4
        changes = in_channels != out_channels or step.native_stride > 1
        projection = nn.Conv2d(in_channels, out_channels, 1, step.stride, bias=False) if changes else None
        self.downsample = nn.Sequential(OrderedDict(conv=projection)) if projection is not None else None
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inside, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(
            inside, inside, 3, step.stride, padding=step.dilation, dilation=step.dilation, bias=False
        )
        self.norm3 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, out_channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.se = make_gate(out_channels, se_reduction)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.relu(self.norm2(self.conv1(y)))
        y = self.relu(self.norm3(self.conv2(y)))
        return self.se(self.conv3(y)) + shortcut


class PreActivationResNet(Backbone):
    """ResNetV2-50 / 101 / 152 / 200; maps at strides 2, 4, 8, 16, 32, the last one normalised and activated."""

    optional_modules = (SqueezeExcitation,)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se_reduction: int = 0,
    ) -> None:
        super().__init__(variant)
        stem, pool, *steps = atrous_steps((2, 2, 1, 2, 2, 2), output_stride)
        self.channels = (64, 256, 512, 1024, 2048)
        self.reductions = (stem.reduction, *(step.reduction for step in steps))
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(in_channels, 64, 7, stem.stride, padding=3, bias=False)))
        self.pool = nn.MaxPool2d(3, pool.stride, padding=1)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(OrderedDict(blocks=make_blocks(before, after, depth, step, se_reduction)))
                for (before, after), depth, step in zip(pairwise(self.channels), VARIANTS[variant], steps, strict=True)
            )
        )
        self.norm = nn.BatchNorm2d(self.channels[-1])
        self.relu = nn.ReLU(inplace=True)
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        x = self.pool(maps[0])
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:-1], self.relu(self.norm(x))]

    def classifier(self, num_classes: int) -> nn.Module:
        head = PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes))
        return nn.Sequential(OrderedDict(head=head))

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """The published classifier is a 1x1 convolution."""
        name = "head.fc.weight"
        return state | ({name: state[name].flatten(1)} if name in state else {})

    def published_url(self) -> str:
        if self.variant not in PUBLISHED:
            return super().published_url()  # which says that there are none
        return f"https://huggingface.co/{PUBLISHED[self.variant]}/resolve/main/model.safetensors"


def make_blocks(in_channels: int, out_channels: int, depth: int, step: Step, se_reduction: int) -> nn.Sequential:
    """`depth` blocks, the first of which has the stage's stride."""
    blocks = [PreActivationBottleneck(in_channels, out_channels, step, se_reduction)]
    blocks += [PreActivationBottleneck(out_channels, out_channels, step.rest, se_reduction) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
