"""Deformable Convolutional Networks. Dai, Qi, Xiong, Li, Zhang, Hu, Wei 2017, arXiv:1703.06211 (version 1), and
Deformable ConvNets v2. Zhu, Hu, Lin, Dai 2018, arXiv:1811.11168 (version 2: every sample is modulated as well).

A plain convolution beside the deformable one says, for each pixel, how far each of the kernel's samples moves. It
starts at zero, so that the network starts as the plain one with the plain one's weights. Differences from the papers:

- Version 2 modulates by 2 * sigmoid(m), which starts at 1; the paper's sigmoid(m) starts at 0.5 and so halves what a
  trained convolution said.
- Offsets are counted in steps of the kernel, not in pixels of the map: where a stride was traded for dilation (see
  `backbones.atrous`) a sample moves as far over the image as it did in the strided network. Whole steps are exact;
  between them the dense map is interpolated at the finer pixels that it has.
- The papers train the offsets with a learning rate of their own (version 2: a tenth); that is the optimiser's to set.
"""

from typing import Literal

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

SAMPLES = 9
"""Of a 3x3 kernel."""


class Offsets(nn.Conv2d):
    """Says where the samples go: `(B, C, H, W)` -> `(B, 18, H', W')`, pairs (y, x); version 2 adds 9 logits behind.

    It has the kernel, stride and dilation of the convolution that it steers.
    """

    def __init__(self, in_channels: int, stride: int, dilation: int, version: Literal[1, 2]) -> None:
        super().__init__(in_channels, (version + 1) * SAMPLES, 3, stride, padding=dilation, dilation=dilation)
        self.start_plain()

    def start_plain(self) -> None:
        """Nothing moves and, in version 2, nothing is weighed."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class DeformableConv2d(nn.Conv2d):
    """A 3x3 convolution without bias whose samples move; its weight has the name and shape of the plain one's.

    `(B, C, H, W)` -> `(B, C', H / stride, W / stride)`. Beyond the borders it sees zeros, as the plain one does.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilation: int, groups: int, version: Literal[1, 2]
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.version = version
        self.offsets = Offsets(in_channels, stride, dilation, version)

    def forward(self, x: Tensor) -> Tensor:
        steered = self.offsets(x)
        offsets = steered[:, : 2 * SAMPLES] * self.dilation[0]
        mask = 2 * steered[:, 2 * SAMPLES :].sigmoid() if self.version == 2 else None
        return deform_conv2d(x, offsets, self.weight, None, self.stride, self.padding, self.dilation, mask)
