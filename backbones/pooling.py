"""Pools that can trade their stride for dilation, as `backbones.atrous` asks."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step


class Pool2d(nn.Module):
    """Max or average pooling; where the network is dilated, over the pixels the strided network would have seen.

    Natively `(B, C, H, W)` -> what PyTorch's pool gives. Dilated or robbed of its stride, the map keeps its H and W: a
    window is anchored where the strided one was (`padding` pixels before it, times the dilation) and never averages
    over padding. Sampled at every skipped pixel this equals the strided map wherever the native pool drops no border,
    that is for sides that are multiples of the full stride.
    """

    def __init__(
        self,
        kind: Literal["max", "average"],
        kernel_size: int,
        step: Step,
        *,
        padding: int = 0,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.kernel_size, self.step = kind, kernel_size, step
        self.padding, self.ceil_mode = padding, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        k, step = self.kernel_size, self.step
        if step.after == 1:
            pool = F.max_pool2d if self.kind == "max" else F.avg_pool2d
            return pool(x, k, step.stride, self.padding, ceil_mode=self.ceil_mode)
        d = step.dilation
        before = self.padding * d
        after = d * (k - 1) - before
        borders = (before, after, before, after)
        if self.kind == "max":
            return F.max_pool2d(F.pad(x, borders, value=float("-inf")), k, 1, dilation=d)
        x = F.pad(x, borders, mode="replicate")
        h, w = x.shape[2] - d * (k - 1), x.shape[3] - d * (k - 1)
        taps = [x[..., i * d : i * d + h, j * d : j * d + w] for i in range(k) for j in range(k)]
        return torch.stack(taps).mean(0)

    def extra_repr(self) -> str:
        return f"{self.kind}, kernel_size={self.kernel_size}, {self.step}, padding={self.padding}"
