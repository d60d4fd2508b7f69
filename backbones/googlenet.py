"""Going Deeper with Convolutions (GoogLeNet, Inception v1). Szegedy et al. 2014, arXiv:1409.4842.

Nine inception blocks apply 1x1, 3x3 and 5x5 convolutions and a max pool in parallel. Differences from the paper, all of
which the network has that torchvision publishes weights for: batch norm after every convolution instead of local
response norm; the 5x5 branch is 3x3; the last pool is 2x2; dropout 0.2 before the classifier (0.4 in the paper); the
auxiliary classifiers average adaptively to 4x4 bins, which on the paper's 14x14 maps are nearly the windows of its
5x5/3 pool. The paper gives no initialisation; here it is that of He et al. 2015. Loads torchvision's checkpoint.

Options: `true_5x5` gives the 5x5 branch the paper's kernel. `naive` builds the blocks of figure 2a, which have no 1x1
reductions and no projection after the pool, so that each block adds its outputs to all channels that it reads.
`se_reduction` = r puts a squeeze-and-excitation gate after each inception block (SE-Inception, arXiv:1709.01507); `se`
is short for r = 16. Published weights load under the gates only.

Torchvision warns that the auxiliary classifiers in its checkpoint were never trained. They are loaded, as an
initialisation, only if `aux` is their number of classes (1000).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone, changes
from backbones.classifiers import PooledClassifier
from backbones.pooling import Pool2d
from backbones.squeeze_excitation import SqueezeExcitation, make_gate, reduction_of
from backbones.state_dicts import StateDict


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * ((kernel_size - 1) // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Style(NamedTuple):
    """Options that all inception blocks share."""

    se_reduction: int = 0
    naive: bool = False
    true_5x5: bool = False


class Inception(nn.Module):
    """Four branches side by side: `(B, in_channels, H, W)` -> `(B, out_channels, H, W)`.

    `widths` are a row of the paper's table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection. `pool` is the
    step of the pool before this stage. A naive block leaves out the reductions and the projection.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int], pool: Step, style: Style) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        step, kernel = pool.rest, 5 if style.true_5x5 else 3

        def branch(reduced: int, width: int, kernel_size: int) -> nn.Sequential:
            if style.naive:
                return nn.Sequential(ConvNorm(in_channels, width, kernel_size, dilation=step.dilation))
            return nn.Sequential(
                ConvNorm(in_channels, reduced, 1), ConvNorm(reduced, width, kernel_size, dilation=step.dilation)
            )

        self.branch1 = ConvNorm(in_channels, one, 1)
        self.branch2 = branch(reduce3, three, 3)
        self.branch3 = branch(reduce5, five, kernel)
        self.branch4 = nn.Sequential(Pool2d("max", 3, step, padding=1))
        if not style.naive:
            self.branch4.append(ConvNorm(in_channels, pooled, 1))
        self.out_channels = one + three + five + (in_channels if style.naive else pooled)
        self.se = make_gate(self.out_channels, style.se_reduction)

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

    They are the outputs of conv1, conv3, inception3b, inception4e and inception5b. `aux` is the number of classes of
    the two auxiliary classifiers for images, which work in training only (`forward_with_aux`); 0 builds none.

    Raises:
        ValueError: `aux` is negative.
    """

    # Torchvision scores these weights with transform_input=True, which turns ImageNet's normalisation into this one.
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    optional_modules = (SqueezeExcitation, Auxiliary)
    first_centres = (0, 2, 6, 14, 22)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se: bool = False,
        se_reduction: int = 0,
        naive: bool = False,
        true_5x5: bool = False,
        aux: int = 0,
    ) -> None:
        super().__init__(variant)
        if aux < 0:
            raise ValueError(f"aux is {aux}; it is the number of classes of the auxiliary classifiers, 0 for none")
        self.aux = aux
        self.changed_options = changes(naive=(naive, False), true_5x5=(true_5x5, False))
        style = Style(reduction_of(se, se_reduction), naive, true_5x5)
        stem, pool1, pool2, pool3, pool4 = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.conv1 = ConvNorm(in_channels, 64, 7, stem.stride)
        self.maxpool1 = Pool2d("max", 3, pool1, ceil_mode=True)
        self.conv2 = ConvNorm(64, 64, 1)
        self.conv3 = ConvNorm(64, 192, 3)
        self.maxpool2 = Pool2d("max", 3, pool2, ceil_mode=True)
        self.inception3a = Inception(192, (64, 96, 128, 16, 32, 32), pool2, style)
        self.inception3b = Inception(self.inception3a.out_channels, (128, 128, 192, 32, 96, 64), pool2, style)
        self.maxpool3 = Pool2d("max", 3, pool3, ceil_mode=True)
        self.inception4a = Inception(self.inception3b.out_channels, (192, 96, 208, 16, 48, 64), pool3, style)
        self.inception4b = Inception(self.inception4a.out_channels, (160, 112, 224, 24, 64, 64), pool3, style)
        self.inception4c = Inception(self.inception4b.out_channels, (128, 128, 256, 24, 64, 64), pool3, style)
        self.inception4d = Inception(self.inception4c.out_channels, (112, 144, 288, 32, 64, 64), pool3, style)
        self.inception4e = Inception(self.inception4d.out_channels, (256, 160, 320, 32, 128, 128), pool3, style)
        self.maxpool4 = Pool2d("max", 2, pool4, ceil_mode=True)
        self.inception5a = Inception(self.inception4e.out_channels, (256, 160, 320, 32, 128, 128), pool4, style)
        self.inception5b = Inception(self.inception5a.out_channels, (384, 192, 384, 48, 128, 128), pool4, style)
        self.aux1 = Auxiliary(self.inception4a.out_channels, aux) if aux else None
        self.aux2 = Auxiliary(self.inception4d.out_channels, aux) if aux else None
        coarse = (self.inception3b, self.inception4e, self.inception5b)
        self.channels = (64, 192, *(block.out_channels for block in coarse))
        self.reductions = tuple(step.reduction for step in (stem, pool1, pool2, pool3, pool4))
        self.min_size = min(15, self.reductions[-1] - 1)  # the 2x2 pool before the last stage needs two pixels
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self._maps(x)[0]

    def forward_with_aux(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps, and the two auxiliary classifiers' logits `(B, aux)`, none outside training or if aux is 0.

        The paper adds their losses to the main one with weight 0.3 each.
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
        return PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes), dropout=0.2)

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """Leave out auxiliary classifiers if none are built here, or if ours have another number of classes."""
        published = state.get("aux1.fc2.weight")
        if published is None or published.shape[0] == self.aux:
            return state
        return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))}
