"""Deformable Convolutional Networks. Dai, Qi, Xiong, Li, Zhang, Hu, Wei 2017, arXiv:1703.06211 (version 1), and
Deformable ConvNets v2. Zhu, Hu, Lin, Dai 2018, arXiv:1811.11168 (version 2: every sample is modulated as well).

A plain convolution predicts, for each output pixel, the offsets of the kernel's sampling points. It is initialised to
zero, so the network initially computes the same as the plain network with the same weights. Differences from the
papers:

- Version 2 modulates by 2 * sigmoid(m), which is initially 1; the paper's sigmoid(m) is initially 0.5, which halves the
  output of a trained convolution.
- Offsets are counted in dilation rates, not in pixels of the map, so that they cover the same distance in the image if
  a stride was replaced by dilation (see `backbones.atrous`). Whole offsets are exact; between them the dense map is
  interpolated from its own, finer pixels.
- The papers train the offsets at a lower learning rate (version 2: a tenth); here it is that of the other layers.

Offsets are computed, and the map is sampled, in float32 or finer whatever the precision of training: bfloat16 resolves
an offset of 4 pixels to 1/32 of a pixel only, and torchvision's operator does not take it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

SAMPLES = 9
"""Sampling points of a 3x3 kernel."""


class Offsets(nn.Conv2d):
    """Predicts offsets: `(B, C, H, W)` -> `(B, 18, H', W')`, pairs (y, x); version 2 appends 9 modulation logits.

    It has the kernel, stride and dilation of the convolution whose sampling points it moves.
    """

    def __init__(self, in_channels: int, stride: int, dilation: int, version: Literal[1, 2]) -> None:
        super().__init__(in_channels, (version + 1) * SAMPLES, 3, stride, padding=dilation, dilation=dilation)
        self.initialise()

    def initialise(self) -> None:
        """Initialise to zero: all offsets are 0 and, in version 2, all modulation factors are 1."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Compute in the precision of `x`, whatever that of the parameters."""
        assert self.bias is not None
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class DeformableConv2d(nn.Conv2d):
    """A 3x3 convolution whose sampling points move; its weight and bias have the plain one's names and shapes.

    `(B, C, H, W)` -> `(B, C', H / stride, W / stride)`. Beyond the borders it reads zeros, as the plain one does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        groups: int,
        version: Literal[1, 2],
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=bias
        )
        self.version = version
        self.offsets = Offsets(in_channels, stride, dilation, version)

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        with no_autocast(x.device.type):
            return self._sampled(x.to(exact), self.weight.to(exact)).to(x.dtype)

    def _sampled(self, x: Tensor, weight: Tensor) -> Tensor:
        predicted = self.offsets(x)
        offsets = predicted[:, : 2 * SAMPLES] * self.dilation[0]
        mask = 2 * predicted[:, 2 * SAMPLES :].sigmoid() if self.version == 2 else None
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return deform_conv2d(x, offsets, weight, bias, self.stride, self.padding, self.dilation, mask)


def check_deformable(deformable: int, version: int, *, parts: str = "stages", number: int = 4) -> None:
    """Refuse an option `deformable` that is no number of the network's last parts, or another version than 1 and 2."""
    if deformable not in range(number + 1):
        raise ValueError(
            f"deformable is {deformable}; the network has {number} {parts}: give 0 (none) to {number} (all)"
        )
    if version not in (1, 2):
        raise ValueError(f"deformable_version is {version}; give 1 (offsets) or 2 (offsets and modulation)")


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Switch autocast off; it does not exist on every device (not on meta, for one)."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
