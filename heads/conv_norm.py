"""Convolutions with batch norm and ReLU, the building blocks of the DeepLab and PSPNet heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norm_pooled(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a batch norm to pooled maps, also if one device has one image with one value per channel.

    PyTorch refuses to compute batch statistics from one value per channel; such a batch is normalised with the running
    statistics, which it does not update. Across several ranks, SyncBatchNorm has more values and needs no such care.
    """
    if not norm.training:  # in prediction the norm may also be folded away; see lightning_modules/folding.py
        return norm(x)
    assert isinstance(norm, _BatchNorm)
    ranks = torch.distributed.get_world_size() if isinstance(norm, nn.SyncBatchNorm) and is_distributed() else 1
    if ranks * x.shape[0] * x.shape[2] * x.shape[3] == 1:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return norm(x)


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, rate: int = 1) -> nn.Sequential:
    """A convolution of an odd `kernel_size`, dilated by `rate`, that keeps the map's size; batch norm and ReLU."""
    padding = rate * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def conv3x3_bn_relu(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
    """A 3x3 convolution at a dilation rate, with batch norm and ReLU; `ASPP` builds its branches with it."""
    return conv_bn_relu(in_channels, out_channels, 3, rate)


def separable_conv(in_channels: int, out_channels: int, rate: int, *, depthwise_norm: bool = True) -> nn.Sequential:
    """A 3x3 convolution per channel at `rate`, then 1x1 across channels, with batch norm and ReLU.

    Args:
        depthwise_norm: whether batch norm and ReLU follow the first of the two as well.
    """
    between = [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)] if depthwise_norm else []
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False),
        *between,
        *conv_bn_relu(in_channels, out_channels, 1),
    )
