"""The shortcuts of residual blocks that He et al. 2015 compare (arXiv:1512.03385, section 3.3), and none at all.

If a block keeps the shape, its shortcut is the identity. If it changes the shape, "B" projects by a 1x1 convolution;
"A" has no parameters: it keeps every stride-th pixel and fills the new channels with zeros. "none" leaves the shortcut
out of every block, which gives the paper's plain networks.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step

Shortcut = Literal["A", "B", "none"]


def check_shortcut(shortcut: str) -> None:
    """Refuse other values than those above."""
    if shortcut not in ("A", "B", "none"):
        raise ValueError(
            f'shortcut is {shortcut!r}; give "A" (zero-padded identity), "B" (projection) or "none" (plain network)'
        )


def make_shortcut(in_channels: int, out_channels: int, step: Step, shortcut: Shortcut) -> nn.Module | None:
    """The shortcut of one block; None for a plain network.

    A block whose stride was replaced by dilation keeps the projection that its weights were trained with.
    """
    if shortcut == "none":
        return None
    if in_channels == out_channels and step.native_stride == 1:
        return nn.Identity()
    if shortcut == "A":
        return ZeroPaddedIdentity(step.stride, out_channels - in_channels)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, step.stride, bias=False), nn.BatchNorm2d(out_channels))


def add_shortcut(residual: Tensor, x: Tensor, shortcut: nn.Module | None) -> Tensor:
    """The residual, to which the shortcut of the block's input is added in place, if there is one."""
    if shortcut is None:
        return residual
    other = shortcut(x)
    # No layer needs a residual for its gradient, and another map would cost time and memory.
    return residual.add_(other) if residual.dtype == other.dtype else residual + other


class ZeroPaddedIdentity(nn.Module):
    """Option A: `(B, C, H, W)` -> `(B, C + extra, H / stride, W / stride)`, the extra channels zero."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra={self.extra}"
