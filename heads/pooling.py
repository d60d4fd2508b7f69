"""Pooling into a fixed number of bins, like PyTorch's adaptive pools, but deterministic on GPUs and exportable.

PyTorch refuses the gradients of its own adaptive pools under `torch.use_deterministic_algorithms`, and its exporters
take them only if the bins divide the map. Bin i of b along a side of n pixels reaches from floor(i n / b) to
ceil((i + 1) n / b), as there, so bins overlap by a pixel if b does not divide n.
"""

import torch
from torch import Tensor, nn


class BinnedAverage(nn.Module):
    """The average over each bin: `(B, C, H, W)` -> `(B, C, bins, bins)`. Sums are matrix products in float32."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        if self.bins == 1:
            return x.mean((2, 3), keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            exact = x if x.dtype == torch.float64 else x.float()  # half precision overflows in sums
            rows, columns = (members(side, self.bins, x.device).to(exact.dtype) for side in x.shape[2:])
            sums = rows @ exact @ columns.T
            return (sums / (rows.sum(1)[:, None] * columns.sum(1))).to(x.dtype)


def members(side: int, bins: int, device: torch.device) -> Tensor:
    """Compute which pixels along a side belong to which bin, as a boolean matrix (bins, side)."""
    index = torch.arange(bins, device=device)[:, None]
    pixel = torch.arange(side, device=device)
    return (pixel >= index * side // bins) & (pixel < -(-(index + 1) * side // bins))


class BinnedMax(nn.Module):
    """The maximum over each bin: `(B, C, H, W)` -> `(B, C, bins, bins)`."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            side = x.shape[axis]
            ends = [(i * side // self.bins, -(-(i + 1) * side // self.bins)) for i in range(self.bins)]
            x = torch.stack([x.narrow(axis, first, last - first).amax(axis) for first, last in ends], axis)
        return x
