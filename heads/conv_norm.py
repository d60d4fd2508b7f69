"""Convolutions with batch norm and ReLU, as the DeepLab and PSPNet heads are built of."""

import torch.nn.functional as F
from torch import Tensor, nn


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm that trains with one image per device.

    One value per channel has no variance, and PyTorch refuses it; such a batch is normalised with the running
    statistics, which it leaves as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, rate: int = 1) -> nn.Sequential:
    """A convolution of an odd `kernel_size`, dilated by `rate`, that keeps the map's size; batch norm and ReLU."""
    padding = rate * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
    """A 3x3 convolution per channel at `rate`, then 1x1 across channels, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *conv_bn_relu(in_channels, out_channels, 1),
    )
