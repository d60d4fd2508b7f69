"""Fully Convolutional Networks for Semantic Segmentation. Long, Shelhamer, Darrell 2014, arXiv:1411.4038.

A 1x1 score layer on each map that a variant reads: at strides 32, 16 and 8 for FCN-8s, without the finer ones for
FCN-16s and FCN-32s. Coarse scores are upsampled by a factor of 2 and added to finer ones; the sum is upsampled to the
image size. Upsampling uses transposed convolutions that are initialised to bilinear interpolation and then trained
(`learn_upsampling`). `up` replaces them by "bilinear" or "nearest" interpolation followed by a 3x3 convolution that
starts as the identity: transposed convolutions whose kernel is no multiple of their stride, or whose weights grow
unequal, leave a checkerboard (Odena, Dumoulin, Olah 2016, Distill, doi:10.23915/distill.00003). At output stride 16 or
8, maps that have the next finer map's stride are added without upsampling. All layers are trained at once or, with
`--staged`, as in the paper: FCN-32s first, FCN-16s from it, FCN-8s from that.

Differences from the paper: the last upsampling is trained too; the coarsest score layer starts at PyTorch's default,
not at zero; the input is not padded by 100 pixels. The paper crops scores by offsets computed from the layers; here,
scores are cropped, or their border is repeated, so that they lie on the pixels of the map or the image that they join
(`heads.placing`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from heads.head import Head, level_at


def bilinear_upsampling(channels: int, factor: int, *, learned: bool = True) -> nn.Module:
    """A transposed convolution that is initialised to bilinear upsampling by an even `factor`.

    `(B, C, H, W)` -> `(B, C, factor * H, factor * W)`. If `learned`, it connects all channels to all; otherwise it is
    frozen and treats each channel alone. A factor of 1 is the identity.
    """
    if factor == 1:
        return nn.Identity()
    groups = 1 if learned else channels
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, factor, padding=factor // 2, groups=groups, bias=False
    ).requires_grad_(learned)
    distance = (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    triangle = (1 - distance).outer(1 - distance)
    connections = torch.eye(channels) if learned else torch.ones(channels, 1)
    with torch.no_grad():
        layer.weight.copy_(connections[:, :, None, None] * triangle)
    return layer


def interpolation_and_conv(channels: int, factor: int, mode: Literal["bilinear", "nearest"]) -> nn.Module:
    """Interpolation by `factor`, then a 3x3 convolution that starts as the identity. A factor of 1 is the identity.

    `(B, C, H, W)` -> `(B, C, factor * H, factor * W)`.
    """
    if factor == 1:
        return nn.Identity()
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight)
    return nn.Sequential(nn.Upsample(scale_factor=factor, mode=mode), conv)


class FCN(Head):
    """Sum of the scores of the maps at `required_strides`; logits at stride 1.

    Args:
        learn_upsampling: False keeps the transposed convolutions at bilinear interpolation.
        up: "transposed", or "bilinear" or "nearest" for interpolation and a convolution.

    Raises:
        ValueError: another `up`, or one that interpolates together with `learn_upsampling` = False.
    """

    backbone_options = {"fully_convolutional": True}

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        learn_upsampling: bool = True,
        up: Literal["transposed", "bilinear", "nearest"] = "transposed",
    ) -> None:
        if up not in ("transposed", "bilinear", "nearest"):
            raise ValueError(f"up is {up!r}; give transposed, bilinear or nearest")
        if up != "transposed" and not learn_upsampling:
            raise ValueError(
                f"learn_upsampling is false, which freezes transposed convolutions, but up is {up}; leave one out"
            )
        super().__init__(reductions, [level_at(reductions, stride) for stride in sorted(self.required_strides)], 1)
        coarse_to_fine = self.levels[::-1]
        scores = [nn.Conv2d(channels[index], num_classes, 1) for index in coarse_to_fine]
        for score in scores[1:]:  # as in the paper: the skips start at zero and add to a network that works
            nn.init.zeros_(score.weight)
            assert score.bias is not None
            nn.init.zeros_(score.bias)
        self.scores = nn.ModuleList(scores)
        strides = [*(reductions[index] for index in coarse_to_fine), 1]
        *ups, final = (
            bilinear_upsampling(num_classes, coarse // fine, learned=learn_upsampling)
            if up == "transposed"
            else interpolation_and_conv(num_classes, coarse // fine, up)
            for coarse, fine in pairwise(strides)
        )
        self.ups = nn.ModuleList(ups)
        self.final = final

    def forward(self, features: list[Tensor]) -> Tensor:
        level, *finer = self.levels[::-1]
        total = self.scores[0](features[level])
        for target, score, up in zip(finer, self.scores[1:], self.ups, strict=True):
            skip = features[target]
            total = self.fit(up(total), level, target, skip.shape[2:], upsampled=True) + score(skip)
            level = target
        return self.final(total)


class FCN32s(FCN):
    """Scores of the stride-32 map, upsampled in one step."""

    required_strides = (32,)


class FCN16s(FCN):
    """FCN-32s with added scores of the stride-16 map."""

    required_strides = (16, 32)
    stages = ({"head": "fcn32s"}, {})


class FCN8s(FCN):
    """FCN-16s with added scores of the stride-8 map."""

    required_strides = (8, 16, 32)
    stages = ({"head": "fcn32s"}, {"head": "fcn16s"}, {})
