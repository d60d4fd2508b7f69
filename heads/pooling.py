"""Pooling into a fixed number of bins, like PyTorch's adaptive pools, but deterministic on GPUs and exportable.

PyTorch refuses the gradients of its own adaptive pools under `torch.use_deterministic_algorithms`, and its exporters
accept them only if the bins divide the map. Bin i of b along a side of n pixels reaches from floor(i n / b) to
ceil((i + 1) n / b), as there, so neighbouring bins overlap by a pixel if b does not divide n.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from heads.placing import span


class BinnedPool(nn.Module):
    """The average or maximum over each bin: `(B, C, H, W)` -> `(B, C, bins, bins)`. Rows are pooled before columns."""

    def __init__(self, kind: Literal["average", "max"], bins: int) -> None:
        super().__init__()
        self.kind, self.bins = kind, bins

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            side = x.shape[axis]
            # Rounded up without negative numbers: ONNX divides integers towards zero.
            ends = [(i * side // self.bins, ((i + 1) * side + self.bins - 1) // self.bins) for i in range(self.bins)]
            parts = [span(x, axis, first, last - first) for first, last in ends]
            x = torch.stack([part.mean(axis) if self.kind == "average" else part.amax(axis) for part in parts], axis)
        return x

    def extra_repr(self) -> str:
        return f"{self.kind}, bins={self.bins}"
