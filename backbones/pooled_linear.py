"""The classifier of most networks since ResNet, for those that publish it under the name fc."""

from torch import Tensor, nn


class PooledLinear(nn.Module):
    """Global average pooling and one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))
