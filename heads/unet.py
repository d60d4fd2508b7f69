"""U-Net: Convolutional Networks for Biomedical Image Segmentation. Ronneberger, Fischer, Brox 2015, arXiv:1505.04597.

The expanding path: the coarsest map is enlarged by an up-convolution, joined with the next finer map of the backbone
and passed through two 3x3 convolutions, up to the finest map. Each level is as wide as the map it joins, at most the
original's 64, 128, 256, 512. Differences from the paper: convolutions are padded, so nothing is cropped, unless `valid`
is set, and followed by batch norm unless `norm` is off. With `unet_encoder` and both settings it is the original.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.head import Head

VALID_REDUCTIONS = (1, 2, 4, 8, 16)
VALID_CUT = 92  # pixels on each side: 572 -> 388 in the paper's figure 1


class UNet(Head):
    """The expanding path over all maps of the backbone; logits at the finest map's resolution.

    Args:
        up: "transpose" learns to enlarge, as the paper does; "interpolate" is bilinear, then a 1x1 convolution.
        norm: batch norm behind each 3x3 convolution.
        width: channels of the finest level at most, doubling with each coarser one.
        valid: convolutions without padding, on maps cropped to fit, as in the paper: for unet_encoder with
            `valid_convolutions`. The image is mirrored outwards, so that every pixel still gets a score.

    Raises:
        ValueError: `up` is none of those, or `valid` does not fit the maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        up: Literal["transpose", "interpolate"] = "transpose",
        norm: bool = True,
        width: int = 64,
        valid: bool = False,
    ) -> None:
        super().__init__()
        if up not in ("transpose", "interpolate"):
            raise ValueError(f"unet has up=transpose or up=interpolate, not up={up}")
        if valid and tuple(reductions) != VALID_REDUCTIONS:
            raise ValueError(
                "unet has valid=true for maps at strides 1, 2, 4, 8, 16 only: --backbone unet_encoder "
                "--backbone-options '{valid_convolutions: true}' at --output-stride 16 or 32"
            )
        self.valid = valid
        self.cut = VALID_CUT if valid else 0
        widths = [min(skip, width * 2**i) for i, skip in enumerate(channels[:-1])]
        coarser = [*widths[1:], channels[-1]]
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(widths))):  # coarse to fine
            factor = reductions[i + 1] // reductions[i]
            self.ups.append(
                nn.ConvTranspose2d(coarser[i], widths[i], factor, factor)
                if up == "transpose"
                else nn.Conv2d(coarser[i], widths[i], 1)
            )
            self.joins.append(double_conv(channels[i] + widths[i], widths[i], norm, valid))
        self.score = nn.Conv2d(widths[0] if widths else channels[-1], num_classes, 1)
        self.apply(init_he)

    def margins(self, size: int) -> tuple[int, int]:
        """The mirrored border that unpadded convolutions use up, and what keeps every side even before each pool."""
        if not self.valid:
            return 0, 0
        whole = size + 2 * VALID_CUT
        return VALID_CUT, VALID_CUT + (12 - whole) % 16

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for skip, up, join in zip(reversed(skips), self.ups, self.joins, strict=True):
            x = up(x)
            if self.valid:
                skip = cropped(skip, x.shape[2:])
            if x.shape[2:] != skip.shape[2:]:
                x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = join(torch.cat((skip, x), 1))
        return self.score(x)


def cropped(x: Tensor, size: torch.Size) -> Tensor:
    """The middle `size` of a map."""
    top, left = ((a - b) // 2 for a, b in zip(x.shape[2:], size, strict=True))
    return x[:, :, top : top + size[0], left : left + size[1]]


def double_conv(in_channels: int, out_channels: int, norm: bool, valid: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(nn.Conv2d(channels, out_channels, 3, padding=0 if valid else 1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def init_he(module: nn.Module) -> None:
    """Deviation sqrt(2 / N) with N incoming nodes, as section 3 of the paper asks for the 3x3 convolutions."""
    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
