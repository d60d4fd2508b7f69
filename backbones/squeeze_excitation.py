"""Squeeze-and-Excitation Networks. Hu, Shen, Albanie, Sun, Wu 2017, arXiv:1709.01507."""

from torch import Tensor, nn


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
