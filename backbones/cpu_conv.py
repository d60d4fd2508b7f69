"""Convolutions that a CPU computes faster, with the same values, or right where PyTorch's are wrong.

In PyTorch 2.14, the gradient of the weights of a dilated convolution in bfloat16 is wrong for many shapes if it has
groups, those of one channel above all: for a 3x3 kernel at rate 2 on 480 maps of 32x40, it differs by 1.4 times its own
size, and it reads memory that nothing has written, so that the loss becomes NaN now and then. Such layers are divided
into parts, as below.

PyTorch's CPU kernels are slow where

- a rate of dilation is as large as the map: all of a 3x3 kernel but its centre reads padding (Chen et al. 2017,
  arXiv:1706.05587, section 3.3). Here the kernel is cropped to what reads the map.
- each channel has a kernel of its own and is dilated: training such a layer takes 5 to 45 times as long as without
  dilation. A value of its output reads only rows and columns that are a multiple of the rate away. So the map is
  divided into rate x rate smaller maps, which pass through the undilated layer as further images of the batch.
- a 1x1 convolution trains in bfloat16: as a matrix product, it takes two thirds of the time on a small map, and as long
  as before on a large one.

`python experiments/benchmarks/cpu_conv_speed.py` measures all three. On other devices, and where a network is compiled
or exported, these layers are PyTorch's, except where its gradients are wrong.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAST_RATE = 6
"""Up to this rate, PyTorch's forward pass is fast for one kernel a channel."""
MOST_PADDING = 2.0
"""Maps are divided if the parts, padded to one size, are at most this many times as large as the map."""


class CPUConv2d(nn.Conv2d):
    """`nn.Conv2d` with the same parameters and values; see above."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.computes(x):
            return super().forward(x)
        if self.kernel_size == (1, 1):
            return self._one_by_one(x)
        rate, size = self.dilation[0], self.kernel_size[0]
        square = self.dilation == (rate, rate) and self.kernel_size == (size, size) and size % 2 == 1
        keeps_size = self.padding == (rate * (size // 2), rate * (size // 2)) and self.padding_mode == "zeros"
        return self._dilated(x, rate, size) if rate > 1 and square and keeps_size else super().forward(x)

    def computes(self, x: Tensor) -> bool:
        """Return whether to compute here: on a CPU, and in compiled or exported networks only if PyTorch is wrong."""
        compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return x.device.type == "cpu" and (not compiled or self._has_wrong_gradient(x))

    def _has_wrong_gradient(self, x: Tensor) -> bool:
        """Return whether PyTorch may compute a wrong gradient of the weights; see the module's docstring."""
        dilated = max(self.dilation) > 1 and self.stride == (1, 1)
        return self.groups > 1 and dilated and torch.is_grad_enabled() and in_bfloat16(x)

    def _one_by_one(self, x: Tensor) -> Tensor:
        plain = self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
        if plain and torch.is_grad_enabled() and in_bfloat16(x) and x.is_contiguous(memory_format=torch.channels_last):
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)

    def _dilated(self, x: Tensor, rate: int, size: int) -> Tensor:
        reach = [min(size // 2, (side - 1) // rate) for side in x.shape[2:]]
        rows, columns = (slice(size // 2 - far, size // 2 + far + 1) for far in reach)
        weight = self.weight[:, :, rows, columns]
        rates = [rate if far else 1 for far in reach]
        each_channel = self.groups == self.in_channels and self.stride == (1, 1)
        slow = max(rates) > (1 if torch.is_grad_enabled() else FAST_RATE)
        padded = math.prod(math.ceil(side / one) * one / side for side, one in zip(x.shape[2:], rates, strict=True))
        if self._has_wrong_gradient(x) or (each_channel and slow and padded <= MOST_PADDING):
            return conv_of_parts(x, weight, self.bias, rates, self.groups)
        padding = [one * far for one, far in zip(rates, reach, strict=True)]
        return F.conv2d(x, weight, self.bias, self.stride, padding, rates, self.groups)


def use_cpu_convolutions(network: nn.Module) -> None:
    """Make every plain `nn.Conv2d` of a network a `CPUConv2d`, in place: parameters, names and hooks stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = CPUConv2d


def in_bfloat16(x: Tensor) -> bool:
    """Whether a convolution of x computes in bfloat16."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


def conv_of_parts(x: Tensor, weight: Tensor, bias: Tensor | None, rates: Sequence[int], groups: int) -> Tensor:
    """A convolution dilated by `rates` that keeps the size of x `(B, C, H, W)`, as an undilated one of parts of x.

    Part (i, j) has every r-th row from i on and every s-th column from j on, if the rates are r and s. Parts are images
    of the batch. Those of one or two values, whose backward pass would be slow, lie side by side in one image instead,
    with zeros between them. The result is channels-last.
    """
    batch, channels, height, width = x.shape
    down, across = rates
    rows, columns = math.ceil(height / down), math.ceil(width / across)
    one_image = min(rows, columns) <= 2 and torch.is_grad_enabled()
    if one_image:
        rows, columns = rows + weight.shape[2] // 2, columns + weight.shape[3] // 2
    x = F.pad(x, (0, columns * across - width, 0, rows * down - height))
    parts = x.permute(0, 2, 3, 1).reshape(batch, rows, down, columns, across, channels)
    if one_image:
        parts = parts.permute(0, 2, 1, 4, 3, 5).reshape(batch, down * rows, across * columns, channels)
    else:
        parts = parts.permute(0, 2, 4, 1, 3, 5).reshape(batch * down * across, rows, columns, channels)
    padding = [size // 2 for size in weight.shape[2:]]
    y = F.conv2d(parts.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=groups).permute(0, 2, 3, 1)
    if one_image:
        y = y.reshape(batch, down, rows, across, columns, -1).permute(0, 2, 1, 4, 3, 5)
    else:
        y = y.reshape(batch, down, across, rows, columns, -1).permute(0, 3, 1, 4, 2, 5)
    return y.reshape(batch, rows * down, columns * across, -1).permute(0, 3, 1, 2)[:, :, :height, :width]
