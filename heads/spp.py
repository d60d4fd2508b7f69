"""Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition (SPP).

He, Zhang, Ren, Sun 2014, arXiv:1406.4729. The last map is max-pooled into 4x4, 2x2 and 1x1 bins, whatever its size: 21
values per channel. They are followed by fc6 and fc7 with 4096 units, ReLU and dropout 0.5, and by the output layer, so
images of any size and shape are classified without being distorted. Differences from the paper: bins are spread evenly
over the map, while the paper's windows round up and its strides down; weights are initialised as in He et al. 2015 and
the output layer with N(0, 0.01).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.head import Head, last
from heads.pooling import BinnedPool


class SPP(Head):
    """Logits `(B, num_classes)` from a pyramid of bins over the last map.

    Args:
        bins: number of bins along each side, for each pyramid level.
        hidden: units of fc6 and fc7.
        dropout: dropout probability after fc6 and after fc7.
    """

    task = "classification"

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        bins: Sequence[int] = (4, 2, 1),
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        if not bins or min(bins) < 1:
            raise ValueError(f"spp has bins={list(bins)}; it needs at least one level, of 1 or more bins per side")
        self.pools = nn.ModuleList(BinnedPool("max", side) for side in bins)
        fc6, fc7 = nn.Linear(channels[-1] * sum(side**2 for side in bins), hidden), nn.Linear(hidden, hidden)
        output = nn.Linear(hidden, num_classes)
        for layer in (fc6, fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(output.weight, 0, 0.01)
        for layer in (fc6, fc7, output):
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(
            fc6, nn.ReLU(inplace=True), nn.Dropout(dropout), fc7, nn.ReLU(inplace=True), nn.Dropout(dropout), output
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.layers(torch.cat([pool(features[-1]).flatten(1) for pool in self.pools], 1))
