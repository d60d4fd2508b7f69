"""Gradient-Based Learning Applied to Document Recognition. LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11).

LeNet-5; weights are drawn uniformly within 2.4 / fan-in. Differences from the paper: C3 reads all six maps of S2 (table
I leaves some connections out), S2 and S4 average without trainable coefficients, and the output layer is linear, for
the usual cross-entropy, instead of radial basis functions. With one channel and ten classes this network has 61,706
parameters, the paper's has 60,000. No weights are published.

The paper's images are 32 x 32 pixels, with the digits centred: pad MNIST's 28 x 28 by two pixels on each side to get
them. Images of other sizes work too: a map S4 that is not 5 x 5 is average-pooled to 5 x 5 (MNIST's unpadded images
give 4 x 4).
"""

import torch
from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import Backbone
from backbones.fully_connected import pool_to


class LeNet(Backbone):
    """LeNet-5: two maps, S2 at stride 2 and S4 at stride 4. `output_stride` changes nothing, because both are finer."""

    input_size = 32
    min_size = 16
    cropped_pixels = 12
    first_centres = (2.5, 7.5)

    def __init__(
        self, variant: str, *, weights: str | None = None, output_stride: int = 32, in_channels: int = 3
    ) -> None:
        super().__init__(variant)
        s2, s4 = atrous_steps((2, 2), output_stride)
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = nn.AvgPool2d(2, s2.stride)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.s4 = nn.AvgPool2d(2, s4.stride)
        self.activation = ScaledTanh()
        self.channels = (6, 16)
        self.reductions = (s2.reduction, s4.reduction)
        init_uniform(self)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        s2 = self.s2(self.activation(self.c1(x)))
        s4 = self.s4(self.activation(self.c3(s2)))
        return [s2, s4]

    def classifier(self, num_classes: int) -> nn.Module:
        return Classifier(num_classes)


class Classifier(nn.Module):
    """C5, F6 and the output layer: `(B, 16, H, W)` -> `(B, num_classes)`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)
        self.activation = ScaledTanh()
        init_uniform(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.c5(pool_to(x, 5))).flatten(1)
        return self.output(self.activation(self.f6(x)))


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x / 3): maps 1 to 1 and -1 to -1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


def init_uniform(network: nn.Module) -> None:
    """All weights and biases uniform within 2.4 / fan-in (appendix A)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 2.4 / module.weight[0].numel()
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)
