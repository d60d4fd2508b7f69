"""Subtracts the mean training image from each image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.box_head import Size


class MeanImage(nn.Module):
    """Images `(B, C, H, W)` minus the mean image, which is scaled to theirs where an image has another size.

    ImageNet Classification with Deep Convolutional Neural Networks. Krizhevsky, Sutskever, Hinton 2012, section 2. The
    paper takes the mean before it cuts crops out; this is the mean of central crops, so that each size has one.
    """

    values: Tensor

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(channels, *size))

    def forward(self, x: Tensor) -> Tensor:
        return x - F.interpolate(self.values[None], x.shape[2:], mode="bilinear", antialias=False)
