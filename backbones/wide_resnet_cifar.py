"""Wide Residual Networks. Zagoruyko, Komodakis 2016, arXiv:1605.07146: the networks for 32x32 images.

WRN-d-k has (d - 4) / 6 pre-activation blocks (He et al. 2016, arXiv:1603.05027) in each of three stages, k times as
wide as the CIFAR ResNets of He et al. 2015, with dropout between a block's two convolutions (0.3 in the paper on
CIFAR). `depth` is d and `widening` k, so that any WRN-d-k of the paper's tables 2 to 5 can be built; k = 1 gives the
pre-activation ResNet of that depth. Batch norm and ReLU precede each convolution, so the first two maps are not
activated; the last one is. `se_reduction` puts a squeeze-and-excitation gate on each residual. Convolutions are
initialised by He et al. 2015. No weights are published; `mean` and `std` are CIFAR-10's. (The paper's ImageNet networks
are in `backbones.resnet`.)
"""

from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import CIFAR_MEAN, CIFAR_STD, Backbone
from backbones.classifiers import PooledClassifier
from backbones.resnet_cifar import blocks_per_stage
from backbones.squeeze_excitation import make_gate

VARIANTS = {"wrn16_8": (16, 8), "wrn28_10": (28, 10), "wrn40_4": (40, 4)}
"""Depth d and widening factor k."""


class PreActivationBlock(nn.Module):
    """norm - ReLU - 3x3 - norm - ReLU - dropout - 3x3, added to the identity.

    If the shape changes, a 1x1 projection of the normalised and activated input replaces the identity.
    """

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float, se_reduction: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.se = make_gate(width, se_reduction)
        changes = stride > 1 or in_channels != width
        self.shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.relu(self.bn2(self.conv1(y)))
        return self.se(self.conv2(self.dropout(y))) + shortcut


class WideResNetCifar(Backbone):
    """WRN-16-8, 28-10, 40-4 and any other for small images; maps at strides 1, 2, 4 at any output stride.

    Raises:
        ValueError: `depth` is not 6n + 4, or `widening` is below 1.
    """

    input_size = 32
    mean = CIFAR_MEAN
    std = CIFAR_STD

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        dropout: float = 0.3,
        depth: int | None = None,
        widening: int | None = None,
        se_reduction: int = 0,
    ) -> None:
        super().__init__(variant)
        own_depth, own_widening = VARIANTS[variant]
        blocks = blocks_per_stage(own_depth if depth is None else depth, 4)
        widening = own_widening if widening is None else widening
        if widening < 1:
            raise ValueError(
                f"widening is {widening}; give 1 or more: the stages have 16, 32 and 64 times as many channels"
            )
        steps = atrous_steps((1, 2, 2), output_stride)
        self.channels = tuple(width * widening for width in (16, 32, 64))
        self.reductions = tuple(step.reduction for step in steps)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        before, stages = 16, []
        for width, step in zip(self.channels, steps, strict=True):
            shapes = [(before, step.stride), *(blocks - 1) * [(width, 1)]]
            stages.append(
                nn.Sequential(*(PreActivationBlock(c, width, stride, dropout, se_reduction) for c, stride in shapes))
            )
            before = width
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(before)
        self.relu = nn.ReLU(inplace=True)
        self.init_weights()
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.layer1(self.conv1(x))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return [c1, c2, self.relu(self.bn(c3))]

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes))
