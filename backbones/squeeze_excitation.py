"""Squeeze-and-Excitation Networks. Hu, Shen, Albanie, Sun, Wu 2017, arXiv:1709.01507.

The gate that every convolutional family takes with the option `se_reduction`, the paper's r: the gate squeezes C
channels to C / r, at least one. The paper uses 16 and compares 2, 4, 8, 16 and 32 (section 6.1). Where the gate stands
(section 3.3): after the whole module of an inception network, on the residual before the sum of a residual network,
after each non-linearity of a VGG, AlexNet or ZFNet, and after the last layer of a block elsewhere. A gate that is not
trained yet passes about half of what it gets, so train the gates before evaluating published weights under them.
"""

from torch import Tensor, nn

PAPER_REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that is computed from the global averages of all channels.

    The parameter names, fc1 and fc2 as 1x1 convolutions, are those of torchvision's and timm's checkpoints.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        activation: type[nn.Module] = nn.ReLU,
        gate_activation: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation()
        self.gate_activation = gate_activation()

    def gate(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, C, 1, 1)`."""
        return self.gate_activation(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class GatedReLU(nn.ReLU):
    """ReLU and a gate in the place of a ReLU, so that the layers after it keep their position in a Sequential."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__(inplace=True)
        self.se = make_gate(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(super().forward(x))


def make_gate(channels: int, reduction: int) -> nn.Module:
    """The gate of `se_reduction`, or the identity if that is 0."""
    check_reduction(reduction)
    return SqueezeExcitation(channels, max(1, channels // reduction)) if reduction else nn.Identity()


def check_reduction(reduction: int) -> None:
    """Refuse a negative reduction."""
    if reduction < 0:
        raise ValueError(f"se_reduction is {reduction}; give what the gates divide the channels by, such as 16, or 0")


def make_relu(channels: int, reduction: int) -> nn.ReLU:
    """ReLU in place, with a gate after it if there is a reduction."""
    return GatedReLU(channels, reduction) if reduction else nn.ReLU(inplace=True)


def reduction_of(se: bool, se_reduction: int) -> int:
    """The reduction that two options ask for: `se` is short for 16, the paper's."""
    return se_reduction or (PAPER_REDUCTION if se else 0)
