"""Pools whose stride can be replaced by dilation, see `backbones.atrous`."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step


class Pool2d(nn.Module):
    """Max or average pooling; in a dilated network, over the pixels that the strided network pools.

    In an undilated network it is PyTorch's pool. When dilated, or when its stride is removed, the output keeps H and W:
    each window starts `padding` * dilation pixels before its anchor, as in the strided network, and averages never
    include padding. Subsampled, the output equals the strided map if the native pool drops no border, that is if the
    image sides are multiples of the full stride.
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
        if step.dilation_after == 1:
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
        total = x[..., :h, :w].clone()
        for i in range(k):
            for j in range(k):
                if i or j:
                    total += x[..., i * d : i * d + h, j * d : j * d + w]  # one sum instead of a stack of k * k maps
        return total / k**2

    def extra_repr(self) -> str:
        return f"{self.kind}, kernel_size={self.kernel_size}, {self.step}, padding={self.padding}"
