"""Fully Convolutional Networks for Semantic Segmentation. Long, Shelhamer, Darrell 2014, arXiv:1411.4038.

A 1x1 score layer on each of the maps a variant reads: at stride 32, 16 and 8 for FCN-8s, without the finer ones for
FCN-16s and FCN-32s. Coarse scores are doubled and added to finer ones, the sum is enlarged to the image. All enlarging
is by transposed convolutions that start as bilinear interpolation and learn on (`learn_upsampling`). Differences from
the paper: the last enlargement learns too; maps stay aligned by symmetric padding, so the 100-pixel border and the
crops after it are not needed; sizes that do not double exactly are interpolated to the map they join. At output stride
16 or 8 maps that are no longer coarser than the next are added as they are. All layers learn at once, or with
`--staged` as in the paper: FCN-32s first, FCN-16s from it, FCN-8s from that.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.head import Head, level


def bilinear_upsampling(channels: int, factor: int) -> nn.Module:
    """A transposed convolution, all channels to all, that starts as bilinear enlargement by an even `factor`.

    `(B, C, H, W)` -> `(B, C, factor * H, factor * W)`. A factor of 1 is the identity.
    """
    if factor == 1:
        return nn.Identity()
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, padding=factor // 2, bias=False)
    distance = (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    triangle = (1 - distance).outer(1 - distance)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels)[:, :, None, None] * triangle)
    return layer


class FCN(Head):
    """Skip sums over the maps at the strides in `needs`; logits at the image's size.

    Args:
        learn_upsampling: False keeps the transposed convolutions at bilinear interpolation.
    """

    backbone_knobs = {"fully_convolutional": True}

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        learn_upsampling: bool = True,
    ) -> None:
        super().__init__()
        found = [level(reductions, stride) for stride in sorted(self.needs, reverse=True)]
        self.levels = [index for index in found if index is not None]
        scores = [nn.Conv2d(channels[index], num_classes, 1) for index in self.levels]
        for score in scores[1:]:  # the paper starts the skips at zero: they add to a net that works
            nn.init.zeros_(score.weight)
            assert score.bias is not None
            nn.init.zeros_(score.bias)
        self.scores = nn.ModuleList(scores)
        strides = [*(reductions[index] for index in self.levels), 1]
        *ups, final = (bilinear_upsampling(num_classes, coarse // fine) for coarse, fine in pairwise(strides))
        self.ups = nn.ModuleList(ups)
        self.final = final
        for up in (*ups, final):
            up.requires_grad_(learn_upsampling)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [features[index] for index in self.levels]
        total = self.scores[0](maps[0])
        for finer, score, up in zip(maps[1:], self.scores[1:], self.ups, strict=True):
            total = up(total)
            if total.shape[2:] != finer.shape[2:]:
                total = F.interpolate(total, finer.shape[2:], mode="bilinear", align_corners=False)
            total = total + score(finer)
        return self.final(total)


class FCN32s(FCN):
    """Scores of the stride-32 map, enlarged at once."""

    needs = (32,)


class FCN16s(FCN):
    """FCN-32s joined by scores of the stride-16 map."""

    needs = (16, 32)
    stages = ({"head": "fcn32s"}, {})


class FCN8s(FCN):
    """FCN-16s joined by scores of the stride-8 map."""

    needs = (8, 16, 32)
    stages = ({"head": "fcn32s"}, {"head": "fcn16s"}, {})
