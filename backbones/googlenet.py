"""Going Deeper with Convolutions (GoogLeNet, Inception v1). Szegedy et al. 2014, arXiv:1409.4842.

Nine inception blocks see each map through 1x1, 3x3 and 5x5 convolutions and a max pool at once. Differences from the
paper, all those of the network torchvision publishes weights for: batch norm after every convolution instead of local
response norm; the 5x5 branch is 3x3; the last pool is 2x2; dropout 0.2 before the classifier (0.4 in the paper); the
auxiliary classifiers average adaptively to 4x4 bins, which on the paper's 14x14 maps are nearly the windows of its
5x5/3 pool. The paper does not say how weights start: He et al. 2015 here. `se` weighs each inception block's output
by squeeze-and-excitation (SE-Inception, arXiv:1709.01507). Loads torchvision's checkpoint.

Torchvision warns that the auxiliary classifiers in its checkpoint were never trained; they load where `aux` asks for
them, as the starting point they are.
"""

from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.pooling import Pool2d
from backbones.squeeze_excitation import SqueezeExcitation
from backbones.state_dicts import StateDict


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side: `(B, in_channels, H, W)` -> `(B, branch widths summed, H, W)`.

    `widths` are a row of the paper's table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection. `pool` is the
    step of the pool in front of this stage.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int], pool: Step, se: bool) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        step = Step(1, pool.after, pool.after, pool.reduction)
        self.branch1 = ConvNorm(in_channels, one, 1)
        self.branch2 = nn.Sequential(
            ConvNorm(in_channels, reduce3, 1), ConvNorm(reduce3, three, 3, dilation=step.dilation)
        )
        self.branch3 = nn.Sequential(
            ConvNorm(in_channels, reduce5, 1), ConvNorm(reduce5, five, 3, dilation=step.dilation)
        )
        self.branch4 = nn.Sequential(Pool2d("max", 3, step, padding=1), ConvNorm(in_channels, pooled, 1))
        out_channels = one + three + five + pooled
        self.se = SqueezeExcitation(out_channels, out_channels // 16) if se else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1))


class Auxiliary(nn.Module):
    """A classifier on a map inside the network: `(B, C, H, W)` -> logits `(B, num_classes)`."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(y))))


class GoogLeNet(Backbone):
    """Inception v1 with batch norm; maps at strides 2, 4, 8, 16, 32.

    They are what conv1, conv3, inception3b, inception4e and inception5b make. `aux` is the number of classes of the two
    auxiliary classifiers, which work in training only (`forward_with_aux`); 0 builds none.

    Raises:
        ValueError: `aux` is negative.
    """

    # Torchvision scores these weights with transform_input=True, which turns ImageNet's normalisation into this one.
    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    optional_modules = (SqueezeExcitation, Auxiliary)
    min_size = 15
    first_centres = (0, 2, 6, 14, 22)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se: bool = False,
        aux: int = 0,
    ) -> None:
        super().__init__(variant)
        if aux < 0:
            raise ValueError(f"aux is {aux}; it is the number of classes of the auxiliary classifiers, 0 for none")
        self.aux = aux
        stem, pool1, pool2, pool3, pool4 = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.conv1 = ConvNorm(in_channels, 64, 7, stem.stride)
        self.maxpool1 = Pool2d("max", 3, pool1, ceil_mode=True)
        self.conv2 = ConvNorm(64, 64, 1)
        self.conv3 = ConvNorm(64, 192, 3)
        self.maxpool2 = Pool2d("max", 3, pool2, ceil_mode=True)
        self.inception3a = Inception(192, (64, 96, 128, 16, 32, 32), pool2, se)
        self.inception3b = Inception(256, (128, 128, 192, 32, 96, 64), pool2, se)
        self.maxpool3 = Pool2d("max", 3, pool3, ceil_mode=True)
        self.inception4a = Inception(480, (192, 96, 208, 16, 48, 64), pool3, se)
        self.inception4b = Inception(512, (160, 112, 224, 24, 64, 64), pool3, se)
        self.inception4c = Inception(512, (128, 128, 256, 24, 64, 64), pool3, se)
        self.inception4d = Inception(512, (112, 144, 288, 32, 64, 64), pool3, se)
        self.inception4e = Inception(528, (256, 160, 320, 32, 128, 128), pool3, se)
        self.maxpool4 = Pool2d("max", 2, pool4, ceil_mode=True)
        self.inception5a = Inception(832, (256, 160, 320, 32, 128, 128), pool4, se)
        self.inception5b = Inception(832, (384, 192, 384, 48, 128, 128), pool4, se)
        self.aux1 = Auxiliary(512, aux) if aux else None
        self.aux2 = Auxiliary(528, aux) if aux else None
        self.channels = (64, 192, 480, 832, 1024)
        self.reductions = tuple(step.reduction for step in (stem, pool1, pool2, pool3, pool4))
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self._maps(x)[0]

    def forward_with_aux(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps, and the two auxiliary logits `(B, aux)`, earlier first; outside training, or at `aux=0`, none.

        The paper adds their losses to the main one at weight 0.3 each.
        """
        maps, after_4a, after_4d = self._maps(x)
        if not self.training or self.aux1 is None or self.aux2 is None:
            return maps, []
        return maps, [self.aux1(after_4a), self.aux2(after_4d)]

    def _maps(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The five maps, and the two that the auxiliary classifiers read."""
        c1 = self.conv1(x)
        c2 = self.conv3(self.conv2(self.maxpool1(c1)))
        c3 = self.inception3b(self.inception3a(self.maxpool2(c2)))
        after_4a = self.inception4a(self.maxpool3(c3))
        after_4d = self.inception4d(self.inception4c(self.inception4b(after_4a)))
        c4 = self.inception4e(after_4d)
        c5 = self.inception5b(self.inception5a(self.maxpool4(c4)))
        return [c1, c2, c3, c4, c5], after_4a, after_4d

    def classifier(self, num_classes: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.2),
                fc=nn.Linear(1024, num_classes),
            )
        )

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """Leaves out auxiliary classifiers where none are built, or ones for another number of classes."""
        published = state.get("aux1.fc2.weight")
        if published is None or published.shape[0] == self.aux:
            return state
        return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))}
