"""The classifier of most networks since ResNet."""

from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Global average pooling, dropout, and the layers published under `name`: `(B, C, H, W)` -> `(B, num_classes)`."""

    def __init__(self, name: str, layers: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.add_module(name, layers)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(self.dropout(x.mean((2, 3))))
