"""A dilated convolution that a CPU computes faster, with the same values.

PyTorch's CPU kernels multiply zeros and are slow in two cases that dilation in place of strides brings about:

- A rate as large as the map: all of a 3x3 kernel but its centre reads padding (Chen et al. 2017, arXiv:1706.05587,
  section 3.3). Here the kernel is cropped to what reads the map.
- One kernel for each channel: its backward pass takes 10 to 100 times as long as that of the same layer without
  dilation. Pixels whose rows and columns differ by no multiple of the rate do not meet in such a layer. So the map is
  divided into rate x rate smaller maps, which pass through the undilated layer as further images of the batch.

`python experiments/benchmarks/dilation_speed.py` measures both.
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


class DilatedConv2d(nn.Conv2d):
    """`nn.Conv2d` with the same parameters and values; see above.

    Kernels have an odd size, and the padding is rate * (size // 2), so that the map keeps its size at stride 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        rate, size = self.dilation[0], self.kernel_size[0]
        if rate == 1 or x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        reach = [min(size // 2, (side - 1) // rate) for side in x.shape[2:]]
        rows, columns = (slice(size // 2 - far, size // 2 + far + 1) for far in reach)
        weight = self.weight[:, :, rows, columns]
        rates = [rate if far else 1 for far in reach]
        each_channel = self.groups == self.in_channels and self.stride == (1, 1)
        slow = max(rates) > (1 if torch.is_grad_enabled() else FAST_RATE)
        padded = math.prod(round_up(side, one) / side for side, one in zip(x.shape[2:], rates, strict=True))
        if each_channel and slow and padded <= MOST_PADDING:
            return conv_of_parts(x, weight, self.bias, rates, self.groups)
        padding = [one * far for one, far in zip(rates, reach, strict=True)]
        return F.conv2d(x, weight, self.bias, self.stride, padding, rates, self.groups)


def round_up(number: int, factor: int) -> int:
    return -(-number // factor) * factor


def conv_of_parts(x: Tensor, weight: Tensor, bias: Tensor | None, rates: Sequence[int], groups: int) -> Tensor:
    """A convolution dilated by `rates` that keeps the size of x `(B, C, H, W)`, as an undilated one of parts of x.

    Part (i, j) has every r-th row from i on and every s-th column from j on, if the rates are r and s. Parts are images
    of the batch. Those of one or two values, whose backward pass would be slow, lie side by side in one image instead,
    with zeros between them. The result is channels-last.
    """
    batch, channels, height, width = x.shape
    down, across = rates
    rows, columns = round_up(height, down) // down, round_up(width, across) // across
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
