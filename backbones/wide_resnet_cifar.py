"""Wide Residual Networks. Zagoruyko, Komodakis 2016, arXiv:1605.07146: the networks for 32x32 images.

WRN-d-k has (d - 4) / 6 pre-activation blocks (He et al. 2016, arXiv:1603.05027) in each of three stages, k times as
wide as the CIFAR ResNets of He et al. 2015, with dropout between a block's two convolutions (0.3 in the paper on
CIFAR). Batch norm and ReLU precede each convolution, so the first two maps are not activated; the last one is.
Convolutions are initialised by He et al. 2015. No weights are published; `mean` and `std` are CIFAR-10's. (The paper's
ImageNet networks are in `backbones.resnet`.)
"""

from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier

# Blocks per stage and widening factor: d = 6 * blocks + 4.
VARIANTS = {"wrn28_10": (4, 10), "wrn40_4": (6, 4)}


class PreActivationBlock(nn.Module):
    """norm - ReLU - 3x3 - norm - ReLU - dropout - 3x3, added to the identity.

    If the shape changes, a 1x1 projection of the normalised and activated input replaces the identity.
    """

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        changes = stride > 1 or in_channels != width
        self.shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.relu(self.bn2(self.conv1(y)))
        return self.conv2(self.dropout(y)) + shortcut


class WideResNetCifar(Backbone):
    """WRN-28-10 and WRN-40-4 for small images; maps at strides 1, 2, 4 at any output stride."""

    input_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(variant)
        blocks, widening = VARIANTS[variant]
        steps = atrous_steps((1, 2, 2), output_stride)
        self.channels = tuple(width * widening for width in (16, 32, 64))
        self.reductions = tuple(step.reduction for step in steps)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        before, stages = 16, []
        for width, step in zip(self.channels, steps, strict=True):
            first = PreActivationBlock(before, width, step.stride, dropout)
            stages.append(
                nn.Sequential(first, *(PreActivationBlock(width, width, 1, dropout) for _ in range(blocks - 1)))
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
